"""`rung data show`: what stages would take, counted whole; on real files of every shape."""

import gzip
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from rung.cli import app
from rung.errors import DataError
from rung.samples import SHAPES
from rung.survey import survey
from rung.tokens.bpe import train_bpe, write_tokenizer
from rung.tokens.tokenizer import load_tokenizer

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
real = pytest.mark.skipif(not DATA.is_dir(), reason="shared/data is not beside the repository")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(train_bpe(["bytes only"], vocab_size=262), folder)  # one token a byte
    return folder


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    return load_tokenizer(tokenizer_folder)


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@real
@pytest.mark.parametrize(
    ("name", "shape", "rows", "samples", "dropped"),
    [
        ("llamafactory_demo/alpaca_en_demo.json", "alpaca", 999, 999, {"duplicate": 14}),
        ("llamafactory_demo/identity.json", "alpaca", 91, 91, {}),
        ("llamafactory_demo/glaive_toolcall_en_demo.json", "sharegpt", 300, 300, {"duplicate": 35}),
        ("llamafactory_demo/dpo_en_demo.json", "sharegpt pair", 300, 300, {"duplicate": 5}),
        ("llamafactory_demo/kto_en_demo.json", "label messages", 300, 300, {}),
        ("oasst_trees/en_100_tree.jsonl", "tree", 100, 100, {}),
        ("dolly_openqa", "turns", 3742, 3742, {"duplicate": 3}),
    ],
)
def test_real_files_of_every_shape(name, shape, rows, samples, dropped):
    found = survey([str(DATA / name)])
    assert found.counts.shapes == {shape: rows}
    assert found.samples == samples
    assert found.dropped == dropped
    assert found.kept == samples - sum(dropped.values())
    assert any(piece.trained for piece in found.example)


@real
def test_real_pairs_judged_by_three_people_each():
    found = survey([str(DATA / "pandalm")])
    assert found.counts.shapes == {"annotated pair": 499}
    # 496 rows with three verdicts each and 3 whose answer is no text
    assert found.dropped["duplicate"] == 45  # an independent count says the same
    assert found.samples == 3 * 496 + 3
    assert found.dropped["answer_is_no_text"] == 3
    assert found.kept + found.dropped.total() == found.samples


@real
def test_a_real_folder_of_mixed_kinds_says_so():
    said = CliRunner().invoke(app, ["data", "show", str(DATA / "llamafactory_demo")]).stdout
    assert "mixed      conversation 1,390, preference 300, unpaired 300" in said
    assert "not read   SOURCE.txt, dataset_info.json" in said


def test_the_output_by_hand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(
        Path("a.jsonl"),
        {"messages": TURNS, "note": "x"},
        {"messages": TURNS},
        {"prompt": "Hi", "completion": " "},
    )
    result = CliRunner().invoke(app, ["data", "show", "a.jsonl"])
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "shape      messages: 2 rows, the first at a.jsonl:1",
        "shape      prompt-completion: 1 row, the first at a.jsonl:3",
        "for        dataset",
        "rows       3 in 1 file; 1 kept, 2 dropped: 1 duplicate, 1 empty_message",
        # "Hi" and "Hello!": 2 and 6 characters
        "characters median 8, 95 % up to 8, longest 8; 75.0 % of 8 are trained on",
        "not used   note 1",
        "example    a.jsonl:1, what is trained on in [brackets]",
        "user: Hi",
        "assistant: [Hello!]",
    ]


def test_tokens_after_the_template_by_hand(tmp_path, tokenizer):
    weighted = [*TURNS, TURNS[0], {"role": "assistant", "content": "No", "weight": 0}]
    path = write(
        tmp_path / "a.jsonl",
        {"messages": TURNS},  # bos user H i end assistant H e l l o ! end: 13, 7 supervised
        {"messages": weighted},  # 13 and user H i end assistant N o end: 21, 7 supervised
        {"prompt": "Hi", "completion": "x" * 30},  # 6 + 31: 37
        {"prompt": "Hi"},
    )
    found = survey([path], tokenizer=tokenizer)
    tokens = found.lengths[1]
    assert (tokens.unit, tokens.total, tokens.supervised) == ("tokens", 71, 7 + 7 + 31)
    assert (tokens.median, tokens.longest) == (21, 37)
    assert found.dropped == {"no_supervised_tokens": 1}
    found = survey([path], tokenizer=tokenizer, context=20)
    assert found.dropped == {"too_long": 2, "no_supervised_tokens": 1}
    found = survey([path], tokenizer=tokenizer, context=20, overlong="shorten")
    assert (found.kept, found.shortened) == (2, 1)
    assert found.dropped == {"too_long": 1, "no_supervised_tokens": 1}
    trained = "".join(piece.text for piece in found.example if piece.trained)
    assert trained == "Hello!<|end|>"


def test_judged_prompts_are_measured_as_they_are_trained_on(tmp_path, tokenizer):
    path = write(
        tmp_path / "a.jsonl",
        # prompt bos user H i end assistant: 6; answers 3 and 4 with their ends
        {"prompt": "Hi", "chosen": "ab", "rejected": "abc"},
        {"prompt": "Hi", "completion": "abcd", "label": True},
        {"prompt": "Hi", "completions": ["a", "b"], "labels": [True, False]},
        {"text": "abc", "label": "x"},
        {"text": "abcd"},
    )
    found = survey([path], tokenizer=tokenizer, context=10)
    assert found.kinds == {"preference": 2, "unpaired": 1, "classification": 1, "text": 1}
    assert found.dropped == {"too_long": 1}  # 6 + 5 of the kto row
    # 6 + 3 + 4, 6 + 4 ("a", newline, "b", end), 3 + 1, 4 + 1; text is trained on whole
    assert (found.lengths[1].total, found.lengths[1].supervised) == (32, 7 + 4 + 5)
    assert found.counts.labels == {"x": 1}


def test_json_is_one_value_with_all_counts(tmp_path, tokenizer_folder, monkeypatch):
    from rung.store.artefact import Artefact, FileEntry
    from rung.store.store import Store

    files = {path.name: FileEntry("", 0) for path in tokenizer_folder.iterdir()}
    stored = Artefact("t", "tokenizer", tokenizer_folder, "", {}, {}, files)
    monkeypatch.setattr(Store, "open", lambda self, name: stored)
    monkeypatch.setattr(Store, "checked", lambda self, artefact: artefact)
    path = write(tmp_path / "a.jsonl", {"messages": TURNS}, {"prompt": "Hi", "completion": ""})
    words = ["data", "show", path, "--json", "--tokenizer", "t", "--context", "64"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert (content["rows"], content["samples"], content["kept"]) == (2, 2, 1)
    assert content["dropped"] == {"empty_message": 1}
    assert content["lengths"]["tokens"]["supervised_share"] == round(7 / 13, 4)
    assert content["example"][-1] == {"text": "Hello!<|end|>", "trained": True}
    assert content["context"] == 64


def test_a_label_that_is_a_word_is_no_verdict(tmp_path):
    rows = {"prompt": "Hi", "completion": "Ho", "label": "easy"}, {"messages": TURNS, "label": "x"}
    found = survey([write(tmp_path / "a.jsonl", *rows)])
    assert found.kinds == {"conversation": 2}
    assert found.counts.unused == {"label": 2}


@real
def test_a_real_table_without_column_names_is_labelled_text():
    found = survey([str(DATA / "rt_polarity" / "sst2_dev.tsv")])
    assert found.kinds == {"classification": 872}
    assert set(found.counts.labels) == {"0", "1"}


def test_columns_are_read_as_others(tmp_path):
    path = write(tmp_path / "a.jsonl", {"frage": "Hi", "antwort": "Ho"})
    words = ["data", "show", path, "--column", "prompt=frage", "--column", "completion=antwort"]
    assert "prompt-completion: 1 row," in CliRunner().invoke(app, words).stdout
    result = CliRunner().invoke(app, [*words[:3], "--column", "prompt"])
    assert (result.exit_code, "write it as ours=theirs" in result.stderr) == (2, True)
    result = CliRunner().invoke(app, ["data", "show", path, "--context", "9"])
    assert "--context 9 is in tokens" in result.stderr


def test_a_terminal_gets_colours_instead_of_brackets(tmp_path):
    path = write(tmp_path / "a.jsonl", {"messages": TURNS})
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "NO_COLOR": ""}
    words = [sys.executable, "-m", "rung", "data", "show", path]
    root = Path(__file__).parent.parent
    subprocess.run(words, stdout=theirs, check=True, cwd=root, env=environment)
    os.close(theirs)
    said = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "\x1b[1;32mHello!" in said
    assert "[Hello!]" not in said


BROKEN = {
    "messages": ({"messages": "Hi"}, "messages is str, it must be a list"),
    "sharegpt": ({"conversations": [{"from": "owl", "value": "Hi"}]}, "role 'owl'"),
    "alpaca": ({"instruction": "Hi", "output": 3}, "output is int, it must be text"),
    "prompt-completion": ({"prompt": "Hi", "completion": {"a": 1}}, "message role None"),
    "question-answer": ({"question": ["Hi"], "answer": "Ho"}, "question is list"),
    "tree": ({"prompt": {"text": "Hi", "replies": [{"rank": 0}]}}, "has no text"),
    "classification": ({"text": "Hi", "label": {"a": 1}}, "label is dict"),
    "turns": ({"text": "### Assistant: Hi"}, "expected 'user'"),
    "prompt": ({"prompt": 3}, "no known shape"),
    "labels": ({"prompt": "Hi", "answers": ["a", "b"], "labels": [True]}, "2 answers need 2 lab"),
    "label": ({"prompt": "Hi", "completion": 3, "label": True}, "completion: messages are"),
    "label conversation": ({"completion": "Hi", "label": True}, 'without "Human:"'),
    "label messages": ({"messages": TURNS[1:], "label": True}, "at least one user message"),
    "kto_tag messages": ({"messages": [], "kto_tag": True}, "non-empty list"),
    "kto_tag sharegpt": ({"conversations": [], "kto_tag": True}, "non-empty list"),
    "kto_tag alpaca": ({"instruction": "Hi", "output": "a", "kto_tag": "x"}, "kto_tag is true"),
    "text": ({"text": 3}, "text is int"),
    "ranking": ({"prompt": "Hi", "answers": ["a", "b"], "ranks": [1]}, "2 answers need 2 ranks"),
    "ratings": ({"prompt": "Hi", "answers": ["a", "b"], "ratings": ["x", 1]}, "list of numbers"),
    "pair": ({"prompt": "Hi", "chosen": 3, "rejected": "b"}, "chosen: messages are"),
    "sharegpt pair": ({"conversations": [], "chosen": "a", "rejected": "b"}, "non-empty list"),
    "alpaca pair": ({"instruction": 3, "chosen": "a", "rejected": "b"}, "instruction is int"),
    "openai pair": (
        {"input": {}, "preferred_output": "a", "non_preferred_output": "b"},
        "messages are a non-empty list",
    ),
    "conversation pair": ({"chosen": "a", "rejected": "b"}, 'without "Human:"'),
    "annotated pair": (
        {"instruction": "Hi", "response1": "a", "response2": "b", "annotator1": 3},
        "annotator1 is 3; 1 or 2 says",
    ),
    "chat event": (
        {"key": "1", "kind": "thumb", "subject": "a", "prompt": [], "answers": [], "value": "up"},
        "messages are a non-empty list",
    ),
    "stepwise": ({"prompt": "Hi", "completions": ["a"], "labels": []}, "1 steps need 1 labels"),
}


@pytest.mark.parametrize("shape", sorted({shape.name for shape in SHAPES}))
def test_a_broken_row_of_every_shape_is_named(tmp_path, shape):
    row, message = BROKEN[shape]
    good = {"messages": TURNS}
    path = write(tmp_path / "a.jsonl", good, row)
    with pytest.raises(DataError, match=rf"a\.jsonl:2.*({message})"):
        survey([path])
    result = CliRunner().invoke(app, ["data", "show", path])
    assert result.exit_code == 2
    assert "Traceback" not in result.output


@pytest.mark.parametrize("shape", sorted({shape.name for shape in SHAPES}))
def test_the_worked_example_of_every_shape_is_of_that_shape(tmp_path, shape):
    example = next(s.example for s in SHAPES if s.name == shape)
    if "[...]" in example:  # shortened for reading
        example = example.replace("[...]", '[{"role": "assistant", "content": "Go."}]')
    found = survey([write(tmp_path / "a.jsonl", json.loads(example))])
    assert found.counts.shapes == {shape: 1}
    assert found.kept == found.samples > 0


WORDS = st.sampled_from(["", " ", "Hi", "Hello!", "\ud800", "a b c " * 4])
MESSAGE = st.fixed_dictionaries({"role": st.just("user"), "content": WORDS})
ANSWER = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": WORDS},
    optional={"weight": st.sampled_from([0, 1, 0.5])},
)
ROW = st.one_of(
    st.fixed_dictionaries({"messages": st.tuples(MESSAGE, ANSWER).map(list)}),
    st.fixed_dictionaries({"messages": st.tuples(MESSAGE, ANSWER, MESSAGE, ANSWER).map(list)}),
    st.fixed_dictionaries({"prompt": WORDS}),
    st.fixed_dictionaries({"instruction": WORDS, "input": WORDS, "output": WORDS}),
    st.fixed_dictionaries({"prompt": WORDS, "chosen": WORDS, "rejected": WORDS}),
    st.fixed_dictionaries({"prompt": WORDS, "completion": WORDS, "label": st.booleans()}),
    st.fixed_dictionaries({"text": WORDS, "label": st.integers(0, 2)}),
    st.fixed_dictionaries({"text": WORDS}),
)


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(ROW, min_size=1, max_size=8), context=st.sampled_from([None, 12, 30]))
def test_every_row_is_kept_or_counted(tmp_path_factory, tokenizer, rows, context):
    path = tmp_path_factory.mktemp("rows") / "a.jsonl.gz"
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(lines.encode()))
    plain = survey([str(path)])
    assert plain.counts.rows == plain.samples == len(rows)
    assert plain.kept + plain.dropped.total() == plain.samples
    assert plain.kept == plain.lengths[0].rows
    counted = survey([str(path)], tokenizer=tokenizer, context=context, overlong="shorten")
    assert counted.kept + counted.dropped.total() == counted.samples
    assert counted.kept == counted.lengths[1].rows <= plain.kept
