"""A recipe that classifies, its report, and `rung predict`, as a user types them."""

import json

import pytest
from browsers import chromium
from classify_tiny import labels_artefact
from train_tiny import tiny_model, tiny_tokenizer
from typer.testing import CliRunner

from rung.cli import app
from rung.evals.figures import collect_figures
from rung.evals.label_section import confusion_chart
from rung.evals.report import build_page
from rung.model.load import save_model
from rung.store.lineage import recipe_artefacts
from rung.store.store import Store

RECIPE = """\
name: reviews
stages:
  reviews: {stage: labels, files: [train.jsonl], heldout_files: [heldout.jsonl]}
  classifier:
    stage: classify
    model: tiny
    labels: reviews
    epochs: 20
    lr: 0.01
    max_tokens: 24
"""


def call(*words, code=0, input=None):
    result = CliRunner().invoke(app, list(words), input=input)
    unexpected = result.exception and not isinstance(result.exception, SystemExit)
    assert not unexpected, result.exception
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with a store in which the recipe has run."""
    root = tmp_path_factory.mktemp("predict")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("RUNG_STORE", raising=False)
        store = Store()
        work = store.begin("a" * 64)
        tokenizer = tiny_tokenizer(work.out)
        save_model(tiny_model(tokenizer.vocab_size), work.out)
        model = store.commit(work, kind="model", stage="sft", config={}, parents={}, notes={})
        work.release()
        store.set_name("tiny", model)
        rows = labels_artefact(root / "rows")
        for side in ("train", "heldout"):
            for line in rows.file(f"{side}.jsonl").read_text().splitlines():
                row = json.loads(line)
                with (root / f"{side}.jsonl").open("a") as file:
                    label = row["labels"][0]
                    file.write(json.dumps({"sentence": row["text"], "label": label}) + "\n")
        (root / "reviews.yaml").write_text(RECIPE)
        result = call("run", "reviews.yaml")
        (root / "said.txt").write_text(result.stdout)
    return root


@pytest.fixture
def here(built, monkeypatch):
    monkeypatch.chdir(built)
    monkeypatch.delenv("RUNG_STORE", raising=False)
    return built


def test_the_recipe_says_what_it_found(here):
    said = (here / "said.txt").read_text()
    assert "160 texts to train on, 60 held out, 2 labels, one label a text" in said
    assert "held-out accuracy 0." in said
    assert ".rung/reports/reviews.html" in said
    assert "classify.accuracy " in said


def test_the_page_shows_the_matrix_and_the_reliability(here):
    _, names = recipe_artefacts(Store(), "reviews")
    page = build_page(names, {}, title="reviews")
    section = next(s for s in page.sections if s.name == "classifier")
    assert [c["title"] for c in section.charts] == [
        "Confusion matrix, held-out texts",
        "Reliability",
    ]
    matrix = section.charts[0]["data"][0]
    assert matrix["x"] == matrix["y"] == ["bad", "good"]
    assert sum(int(count) for row in matrix["text"] for count in row) == 60
    assert [sum(row) for row in matrix["z"]] == pytest.approx([1, 1])
    facts = dict(section.facts)
    assert facts["held-out texts labelled rightly"].endswith(", n 60")
    assert section.tables[0].head == ["label", "precision", "recall", "F1", "held-out texts"]
    row = next(row for row in page.overview if row.name == "classifier")
    assert "of held-out texts rightly (commonest label:" in row.gained[0]
    figures = collect_figures(names)["figures"]
    assert figures["classify.accuracy"] > 0.7
    assert figures["classify.accuracy_low"] < figures["classify.accuracy"]
    assert "Confusion matrix" in (here / ".rung/reports/reviews.html").read_text()


def test_the_page_in_a_browser(here):
    with chromium() as browser:
        tab = browser.new_page(viewport={"width": 390, "height": 900})
        problems: list[str] = []
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        tab.goto((here / ".rung/reports/reviews.html").resolve().as_uri())
        plot = tab.locator("#stage-classifier .plot").first
        plot.scroll_into_view_if_needed()
        tab.wait_for_selector("#stage-classifier .plot .heatmap-label")
        written = plot.locator(".heatmap-label").all_text_contents()
        assert sum(int(count) for count in written) == 60
        assert problems == []


def test_a_matrix_of_many_labels_keeps_the_commonest():
    matrix = [[0] * 50 for _ in range(50)]
    for index in range(50):
        matrix[index][index] = index
    drawn = confusion_chart(matrix, [f"label {i}" for i in range(50)])
    (trace,) = drawn["data"]
    assert trace["x"] == [f"label {i}" for i in range(10, 50)]
    assert "texttemplate" not in trace
    assert "40 commonest of 50" in drawn["title"]


def test_texts_on_the_command_line(here):
    lines = call("predict", "reviews/classifier", "good good here", "bad bad").stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].split("\t")[1] == "good good here"
    label, probability = lines[1].split("\t")[0].split()
    assert label in ("good", "bad")
    assert 0.5 <= float(probability) <= 1


def test_json_is_one_value_and_stdin_is_a_text_a_line(here):
    given = call("predict", "reviews/classifier", "--json", input="good good\n\nbad bad\n").stdout
    rows = json.loads(given)
    assert [row["text"] for row in rows] == ["good good", "bad bad"]
    for row in rows:
        assert row["predicted"] == max(row["probabilities"], key=row["probabilities"].get)
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-3)


def test_a_file_comes_back_row_by_row(here):
    call("predict", "reviews/classifier", "--file", "heldout.jsonl", "--out", "labelled.jsonl")
    rows = [json.loads(line) for line in (here / "labelled.jsonl").read_text().splitlines()]
    given = [json.loads(line) for line in (here / "heldout.jsonl").read_text().splitlines()]
    assert [row["sentence"] for row in rows] == [row["sentence"] for row in given]
    right = sum(row["predicted"] == row["label"] for row in rows) / len(rows)
    _, names = recipe_artefacts(Store(), "reviews")
    assert right == pytest.approx(names["classifier"].notes["figures"]["accuracy"], abs=1e-6)
    printed = call("predict", "reviews/classifier", "--file", "heldout.jsonl").stdout.splitlines()
    assert [json.loads(line) for line in printed] == rows


def test_what_cannot_be_labelled_is_said(here):
    assert (
        "not a classifier; classifiers: reviews/classifier"
        in call("predict", "tiny", "x", code=2).stderr
    )
    (here / "odd.jsonl").write_text('{"body": "x"}\n')
    said = call("predict", "reviews/classifier", "--file", "odd.jsonl", code=2).stderr
    assert "odd.jsonl:1: no text" in said
    assert "keys found: body" in said
    both = call("predict", "reviews/classifier", "x", "--file", "odd.jsonl", code=2)
    assert "use one of them" in both.stderr
    missing = call("predict", "reviews/classifier", "--file", "none.jsonl", code=2)
    assert "no such file" in missing.stderr
    cut = call("predict", "reviews/classifier", "good " * 100)
    assert "1 texts are longer than 24 tokens" in cut.stderr
    talk = call("generate", "reviews/classifier", "--prompt", "x", code=2)
    assert "is a classifier, not a model" in talk.stderr
