"""What a stage logs beside its loss: bits per byte, memory, samples; whole again after a resume."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from train_tiny import (
    artefact,
    context,
    dataset_artefact,
    feedback_artefact,
    instruction,
    model_artefact,
    same_bytes,
)

from rung.engine.generate import generate
from rung.engine.sampling import Sampling
from rung.evals.likelihood import document_bits
from rung.model.load import load_model
from rung.store.runlog import SAMPLES, RunLog, read_metrics
from rung.tokens.chat import render
from rung.tokens.tokenizer import load_tokenizer
from rung.train import watch
from rung.train.objectives import continued, dpo, grpo, reward, sft

HELD = ["what is it? tell me now", "good answer here \u00e9\u00e8", "bad answer there " * 9]


@pytest.fixture
def inputs(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    texts = [("train", f"good answer {i} here. bad answer there") for i in range(60)]
    texts += [("heldout", text) for text in HELD]
    rows = [
        {"id": str(i), "text": text, "domain": "d", "split": split, "part": "instruct"}
        for i, (split, text) in enumerate(texts)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "documents.parquet")
    return {"model": model_artefact(tmp_path / "model"), "corpus": artefact(folder, "corpus")}


CONFIG = continued.Config(
    tokens=2048,
    tokens_per_step=256,
    tokens_per_parameter=None,
    replay_share=0.0,
    looks=2,
    heldout_tokens=10_000,
    sample_prompt="good ",
    checkpoints=4,
    precision="fp32",
)


def test_bits_per_byte_are_those_of_the_evaluation(tmp_path, inputs):
    where = context(tmp_path / "run", **inputs)
    continued.run(where, CONFIG)
    rows = [row for row in read_metrics(where.run / "metrics.jsonl") if "heldout_bpb" in row]
    assert [row["step"] for row in rows] == [3, 7]
    assert all("memory_gb" in row for row in read_metrics(where.run / "metrics.jsonl"))
    # the model after the last step, measured by the other code: an end is charged to each text
    tokenizer = load_tokenizer(inputs["model"].path)
    ids = [np.append(tokenizer.encode(text), tokenizer.document_end) for text in HELD]
    bits = document_bits(load_model(where.out), ids, bos=tokenizer.bos, context=128).sum()
    assert max(map(len, ids)) < 128  # one window each: both cut alike
    num_bytes = sum(len(text.encode()) for text in HELD)
    assert rows[-1]["heldout_bpb"] == pytest.approx(bits / num_bytes, rel=1e-4)
    nats = bits * math.log(2) / sum(map(len, ids))
    assert rows[-1]["heldout_loss"] == pytest.approx(nats, rel=1e-4)


def test_samples_are_kept_by_step_and_cut_back_on_resume(tmp_path, inputs):
    where = context(tmp_path / "run", **inputs)
    continued.run(where, CONFIG)
    samples = RunLog(where.run, SAMPLES)
    first = samples.read()
    assert [(row["step"], row["prompt"]) for row in first] == [(3, "good "), (7, "good ")]
    assert f"sample: {'good ' + first[-1]['text']!r}" in where.progress.lines
    samples.append({"step": 99, "prompt": "of a run that was killed", "text": "x"})
    continued.run(where, CONFIG)  # from its last checkpoint
    assert samples.read() == first


def test_answers_that_are_graded_are_samples(tmp_path):
    model = model_artefact(tmp_path / "model")
    feedback = feedback_artefact(tmp_path / "feedback", num=8)
    judged = context(tmp_path / "reward", model=model, feedback=feedback)
    reward.run(judged, reward.Config(epochs=1, rankings_per_update=4, precision="fp32"))
    where = context(
        tmp_path / "grpo",
        model=model,
        reward=artefact(judged.out, "reward-model"),
        dataset=dataset_artefact(tmp_path / "data", num=8),
    )
    config = grpo.Config(
        iterations=3,
        prompts_per_iteration=2,
        answers_per_prompt=2,
        max_new_tokens=4,
        eval_prompts=4,
        eval_every=2,
        precision="fp32",
    )
    grpo.run(where, config)
    rows = RunLog(where.run, SAMPLES).read()
    assert [row["step"] for row in rows] == [0, 0, 0, 2, 2, 2]
    assert all(row["prompt"].startswith("what is ") and row["score"] <= 1 for row in rows)


def _watched(stage, where, config, monkeypatch, *, share):
    monkeypatch.setattr(watch, "SHARE", share)
    stage.run(where, config)
    return RunLog(where.run, SAMPLES).read()


def test_what_is_tuned_answers_held_out_prompts_now_and_then(tmp_path, monkeypatch):
    model = model_artefact(tmp_path / "model")
    folder = tmp_path / "data"
    data = dataset_artefact(folder, num=3)
    rows = [instruction(index) for index in range(40)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = sft.Config(epochs=4, tokens_per_step=128, precision="fp32", checkpoints=0)
    where = context(tmp_path / "often", model=model, dataset=data)
    written = _watched(sft, where, config, monkeypatch, share=math.inf)
    total = 1 + max(row["step"] for row in RunLog(where.run).read())
    every = math.ceil(total / 6)
    assert [row["step"] for row in written[::2]] == list(range(every - 1, total, every))
    assert [row["prompt"] for row in written[:4]] == ["what is 0?", "what is 1?"] * 2
    rarely = context(tmp_path / "rarely", model=model, dataset=data)
    assert _watched(sft, rarely, config, monkeypatch, share=0) == written[:2]
    assert same_bytes(where.out, rarely.out, ["model.safetensors"])  # watching changes nothing


def test_the_last_look_is_what_the_model_says(tmp_path, monkeypatch):
    feedback = feedback_artefact(tmp_path / "feedback", num=20)
    where = context(tmp_path / "dpo", model=model_artefact(tmp_path / "model"), feedback=feedback)
    config = dpo.Config(epochs=1, rankings_per_update=8, precision="fp32", lr=1e-2)
    written = _watched(dpo, where, config, monkeypatch, share=math.inf)
    tokenizer = load_tokenizer(where.out)
    asked = [[{"role": "user", "content": row["prompt"]}] for row in written[-2:]]
    prompts = [render(tokenizer, one, generation_prompt=True).ids for one in asked]
    sampling = Sampling(max_new_tokens=48, temperature=0.0, stop_ids=tokenizer.stop_ids)
    said = generate(load_model(where.out), prompts, sampling)
    assert [row["text"] for row in written[-2:]] == [tokenizer.decode(a[0].ids) for a in said]
