"""Collecting simulated feedback: true to the grader, honest about noise, resumed to the byte."""

import json

import pytest
from openai_server import Api, serving
from train_tiny import Quiet, artefact, context, dataset_artefact, instruction, model_artefact

from rung.config import parse_config
from rung.engine.remote import EngineConfig
from rung.errors import DataError
from rung.feedback.annotator import AnnotatorConfig, SimulatedAnnotator, noise_ceiling
from rung.feedback.rankings import load_rankings
from rung.tasks.grade import utility
from rung.tokens.tokenizer import load_tokenizer
from rung.train import collect

CONFIG = collect.Config(num_prompts=11, answers=3, max_new_tokens=6)
EXACT = SimulatedAnnotator(AnnotatorConfig(noise_std=0, tie_margin=0, flag_error=0), seed=0)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    return {
        "model": model_artefact(folder / "model"),
        "dataset": dataset_artefact(folder / "dataset", num=14),
    }


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(collect, "CHUNK", 4)


def answer(text, *, stopped=True):
    return {"text": text, "stopped": stopped}


def test_rankings_are_what_the_report_says(tmp_path, inputs):
    work = context(tmp_path, **inputs)
    notes = collect.run(work, CONFIG)
    records = load_rankings(work.out)
    report = json.loads((work.out / "report.json").read_text())
    assert report["rankings"] == len(records) == 11 - report["dropped"]["equal_answers"]
    assert report["kinds"] == {"simulated": len(records)}
    assert report["annotators"] == {"simulated-1": len(records)}
    assert notes["figures"]["noise_ceiling"] == pytest.approx(
        noise_ceiling(records).value, abs=1e-6
    )
    rows = {instruction(i)["id"]: instruction(i) for i in range(14)}
    for record in records:
        row = rows[record.id]
        assert record.prompt == row["messages"][:1]
        assert 2 <= len(record.answers) <= 3
        assert len({text.strip() for text in record.answers}) >= 2
        told = zip(record.answers, record.stopped, record.source["utilities"], strict=True)
        for text, stopped, value in told:
            assert utility(row, text, stopped=stopped).value == pytest.approx(value, abs=1e-6)


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path, inputs, monkeypatch):
    whole = context(tmp_path / "whole", **inputs)
    collect.run(whole, CONFIG)

    class Killed(Quiet):
        def update(self, done, **figures):
            if done >= 8:
                raise KeyboardInterrupt

    killed = context(tmp_path / "killed", **inputs)
    object.__setattr__(killed, "progress", Killed())
    with pytest.raises(KeyboardInterrupt):
        collect.run(killed, CONFIG)
    # a chunk that was being written is no chunk
    (killed.run / "collect" / "000008.jsonl.tmp").write_text('{"id": "half')
    sampled = []
    real = collect.generate

    def counted(model, prompts, *args, **options):
        sampled.append(len(prompts))
        return real(model, prompts, *args, **options)

    monkeypatch.setattr(collect, "generate", counted)
    object.__setattr__(killed, "progress", Quiet())
    collect.run(killed, CONFIG)
    assert sampled == [3]  # 11 prompts, of which two chunks of 4 were saved
    for name in ("rankings.jsonl", "report.json"):
        assert (killed.out / name).read_bytes() == (whole.out / name).read_bytes()


def test_each_prompt_has_random_numbers_of_its_own(tmp_path, inputs, monkeypatch):
    keys = []
    real = collect.generate

    def recorded(model, prompts, *args, **options):
        keys.extend(options["keys"])
        return real(model, prompts, *args, **options)

    monkeypatch.setattr(collect, "generate", recorded)
    collect.run(context(tmp_path, **inputs), CONFIG)
    assert keys == list(range(11))


def test_another_seed_samples_other_answers(tmp_path, inputs):
    texts = []
    for seed in (0, 1):
        work = context(tmp_path / str(seed), **inputs)
        collect.run(work, CONFIG.model_copy(update={"seed": seed}))
        texts.append([record.answers for record in load_rankings(work.out)])
    assert texts[0] != texts[1]


def test_a_noise_free_annotator_ranks_by_the_truth():
    row = instruction(1)  # the right answer is "good answer"
    answers = [answer("bad one"), answer("good answer"), answer("good answer", stopped=False)]
    record = collect.rank(row, answers, annotator=EXACT)
    assert record is not None
    # 0.4 for an attempt, 1.0 for the truth, 1.0 - 0.3 for the truth that does not stop
    assert record.source["utilities"] == pytest.approx([0.4, 1.0, 0.7])
    assert list(record.ranks) == [3, 1, 2]
    assert [list(flags) for flags in record.flags] == [["misleading"], [], ["unhelpful"]]


def test_admitting_wins_where_nothing_exists():
    row = instruction(0)
    record = collect.rank(
        row, [answer("It is good."), answer(row["truth"]["answer"])], annotator=EXACT
    )
    assert record is not None
    assert list(record.ranks) == [2, 1]


def test_equal_answers_are_judged_once():
    row = instruction(1)
    assert collect.rank(row, [answer("good"), answer(" good")], annotator=EXACT) is None
    twice = [answer("good"), answer("bad"), answer("good"), answer("", stopped=False)]
    record = collect.rank(row, twice, annotator=EXACT)
    assert record is not None
    assert record.answers == ["good", "bad"]


def test_prompts_without_truth_are_refused(tmp_path, inputs):
    row = instruction(1)
    row["truth"]["answer"] = ""
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "prompts.jsonl").write_text(json.dumps(row) + "\n")
    work = context(tmp_path, **{**inputs, "dataset": artefact(folder, "dataset")})
    with pytest.raises(DataError, match=r"'explain/1' has no reference answer.*`feedback` stage"):
        collect.run(work, CONFIG)


def test_equal_answers_everywhere_are_an_error(tmp_path, inputs):
    work = context(tmp_path, **inputs)
    with pytest.raises(DataError, match=r"equal answers.*raise temperature"):
        # fp32: in bf16 two likeliest tokens are often exactly equal
        collect.run(work, CONFIG.model_copy(update={"temperature": 1e-6, "precision": "fp32"}))


def test_another_engine_answers_in_place_of_the_model(tmp_path, inputs):
    with serving(Api(load_tokenizer(inputs["model"].path))) as api:
        api.answer = lambda body: ["good answer", "bad answer", " x"][body["seed"] % 3]
        config = parse_config(collect.Config, {**CONFIG.model_dump(), "engine": {"url": api.url}})
        work = context(tmp_path, **inputs)
        collect.run(work, config)
        records = load_rankings(work.out)
        sent = api.bodies("/v1/completions")
    assert work.progress.lines[0].endswith("sent as ids")
    assert len(sent) == 1 + 11 * 3
    texts = {text for record in records for text in record.answers}
    assert texts <= {"good answer", "bad answer", " x"}
    assert all(record.stopped == [True] * len(record.answers) for record in records)
    report = json.loads((work.out / "report.json").read_text())
    assert report["engine"] == {"model": "tiny", "prompts": "ids"}


def test_another_engine_needs_no_weights_here(tmp_path, inputs, monkeypatch):
    monkeypatch.setattr(collect, "load_model", lambda *_, **__: pytest.fail("read the weights"))
    with serving(Api()) as api:
        api.answer = lambda body: f"answer {body['seed'] % 5}"
        work = context(tmp_path, **inputs)
        config = CONFIG.model_copy(update={"engine": EngineConfig(url=api.url)})
        collect.run(work, config)
        sent = api.bodies("/v1/chat/completions")
    assert {len(body["messages"]) for body in sent} == {1}  # without the reference answer
    assert "does not tell its vocabulary" in work.progress.lines[0]
