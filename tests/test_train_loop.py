"""The loop: accumulation is exact, resumed equals uninterrupted, bad values are skipped."""

import json
import math
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from train_tiny import context

from rung.errors import Interrupted, TrainingError
from rung.model.attention import TorchForest, to_torch
from rung.model.build import build_model
from rung.model.forward import weighted_nll
from rung.model.shape import ModelConfig, resolve
from rung.store.runlog import read_metrics
from rung.tokens.forest import Tree, document, pack
from rung.train.loop import EarlyStop, LossSums, Objective, train
from rung.train.optim import TrainConfig, build_optimizers, lr_factor
from rung.train.state import copy_weights

VOCAB = 64


class Vocabulary:
    vocab_size, bos, pad, stop_ids = VOCAB, 1, 0, (2, 1)


def tiny_model() -> nn.Module:
    shape = resolve(ModelConfig(width=16, layers=1, heads=2, kv_heads=2, ffn=24, context=32))
    return build_model(shape, Vocabulary(), seed=3)


class Documents(Objective[TorchForest]):
    """Random documents with ragged weights; `parts` microbatches an update."""

    name = "documents"

    def __init__(self, *, steps: int = 8, parts: int = 1) -> None:
        self.model, self.steps, self.parts = tiny_model(), steps, parts
        self.poison: set[int] = set()  # iterations with a non-finite loss
        self.stop_at = self.signal_at = -1
        self.now = -1

    def modules(self) -> nn.Module:
        return self.model

    def num_iterations(self) -> int:
        return self.steps

    def trees(self, iteration: int) -> list[Tree]:
        rng = np.random.default_rng(iteration)
        lengths = [3, 30, 9, 14, 5, 21, 8, 11, 2, 25, 6, 7, 19, 4, 12, 16]
        return [
            document(rng.integers(3, VOCAB, n), rng.random(n).astype(np.float32)) for n in lengths
        ]

    def updates(self, iteration: int) -> Iterable[list[TorchForest]]:
        self.now = iteration
        trees = self.trees(iteration)
        size = len(trees) // self.parts
        yield [to_torch(pack(trees[i : i + size])) for i in range(0, len(trees), size)]

    def loss(self, batch: TorchForest) -> LossSums:
        loss = weighted_nll(self.model, batch)
        if self.now in self.poison:
            loss = loss * float("nan")
        return LossSums(loss, float(batch.host.weight.sum()), batch.host.num_tokens)

    def after_iteration(self, iteration: int, metrics: dict[str, float]) -> list[str]:
        if iteration == self.signal_at:
            os.kill(os.getpid(), signal.SIGINT)
        if iteration == self.stop_at:
            raise EarlyStop("the test says so")
        return []


def config(**values: Any) -> TrainConfig:
    defaults = {"lr": 1e-2, "matrix_lr": 0.02, "precision": "fp32", "checkpoints": 4}
    return TrainConfig(**{**defaults, **values})


def weights(objective: Objective[Any]) -> dict[str, torch.Tensor]:
    return copy_weights(objective.modules())


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("parts", [4, 16])
def test_accumulation_equals_the_whole_batch(parts: int, tmp_path: Path) -> None:
    """1 x 16 documents, 4 x 4 and 16 x 1 give the same gradients although counts are ragged."""
    grads = []
    for number in (1, parts):
        objective = Documents(steps=1, parts=number)
        microbatches = next(iter(objective.updates(0)))
        count = 0.0
        for batch in microbatches:
            part = objective.loss(batch)
            part.loss.backward()
            count += part.count
        grads.append({n: p.grad / count for n, p in objective.model.named_parameters()})
    for name, whole in grads[0].items():
        torch.testing.assert_close(whole, grads[1][name], atol=1e-6, rtol=1e-4, msg=name)

    one, many = Documents(steps=2), Documents(steps=2, parts=parts)
    slow = config(optimizer="adamw", lr=1e-4)
    first = train(one, slow, context(tmp_path / "1"))
    second = train(many, slow, context(tmp_path / "2"))
    assert first.last["loss"] == pytest.approx(second.last["loss"], rel=1e-5)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_resumed_equals_uninterrupted(optimizer: str, tmp_path: Path) -> None:
    settings = config(optimizer=optimizer)
    whole = Documents(steps=9)
    train(whole, settings, context(tmp_path / "whole"))

    first = Documents(steps=9)
    first.signal_at = 4
    place = context(tmp_path / "parts")
    with pytest.raises(Interrupted, match=r"stopped at step 5 of 9.*checkpoint") as caught:
        train(first, settings, place)
    assert caught.value.exit_code == 130
    second = Documents(steps=9)
    result = train(second, settings, place)

    assert result.resumed_at == 5
    assert_same(weights(whole), weights(second))
    logs = [read_metrics(tmp_path / n / "run" / "metrics.jsonl") for n in ("whole", "parts")]
    timed = {"seconds", "tokens_per_s", "memory_gb"}
    plain = [[{k: v for k, v in row.items() if k not in timed} for row in log] for log in logs]
    assert plain[0] == plain[1]
    assert [row["step"] for row in plain[0]] == list(range(9))


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    whole = Documents(steps=8)
    train(whole, config(), context(tmp_path / "whole"))
    first, place = Documents(steps=8), context(tmp_path / "parts")
    first.signal_at = 5
    with pytest.raises(Interrupted):
        train(first, config(), place)
    newest = place.run / "checkpoints" / "step-6" / "weights.safetensors"
    damaged = bytearray(newest.read_bytes())
    damaged[-3] ^= 1
    newest.write_bytes(damaged)

    second = Documents(steps=8)
    result = train(second, config(), place)
    assert result.resumed_at == 4
    assert any("step-6" in line for line in place.progress.lines)  # type: ignore[attr-defined]
    assert_same(weights(whole), weights(second))


def test_a_non_finite_update_is_skipped_and_counted(tmp_path: Path) -> None:
    objective = Documents(steps=6)
    objective.poison = {2, 4}
    place = context(tmp_path)
    result = train(objective, config(), place)
    assert result.skipped == 2
    assert all(torch.isfinite(p).all() for p in objective.model.parameters())
    log = read_metrics(place.run / "metrics.jsonl")
    assert [row["step"] for row in log if row.get("skipped")] == [2, 4]
    assert sum("update skipped" in line for line in place.progress.lines) == 2  # type: ignore[attr-defined]


def test_a_skipped_update_changes_nothing(tmp_path: Path) -> None:
    objective = Documents(steps=1)
    objective.poison = {0}
    before = weights(objective)
    train(objective, config(), context(tmp_path))
    assert_same(before, weights(objective))


def test_too_many_in_a_row_go_back_to_the_checkpoint(tmp_path: Path) -> None:
    objective, place = Documents(steps=12), context(tmp_path)
    objective.poison = {7, 8, 9}
    result = train(objective, config(max_skips=2), place)
    assert result.iterations == 12
    lines = place.progress.lines  # type: ignore[attr-defined]
    assert any("back to step 6, leaving them out" in line for line in lines)
    log = read_metrics(place.run / "metrics.jsonl")
    assert [row["step"] for row in log] == [0, 1, 2, 3, 4, 5, 6, 10, 11]
    assert all(math.isfinite(row["loss"]) for row in log)


def test_a_loss_that_stays_non_finite_ends_with_a_way_out(tmp_path: Path) -> None:
    objective = Documents(steps=12)
    objective.poison = set(range(12))
    with pytest.raises(TrainingError, match="lower lr and matrix_lr"):
        train(objective, config(max_skips=2), context(tmp_path))


def test_a_stop_rule_ends_the_run_and_is_reported(tmp_path: Path) -> None:
    objective = Documents(steps=9)
    objective.stop_at = 3
    result = train(objective, config(), context(tmp_path))
    assert (result.iterations, result.stopped) == (4, "the test says so")


def test_training_learns(tmp_path: Path) -> None:
    """Eight identical steps on one batch: the loss falls from about ln(64)."""
    objective = Documents(steps=30)
    objective.trees = lambda iteration: Documents.trees(objective, 0)  # type: ignore[method-assign]
    place = context(tmp_path)
    train(objective, config(), place)
    losses = [row["loss"] for row in read_metrics(place.run / "metrics.jsonl")]
    assert losses[0] == pytest.approx(math.log(VOCAB), abs=0.2)
    assert losses[-1] < losses[0] - 0.5


def test_schedule_by_hand() -> None:
    settings = config(warmup=0.1, decay=0.5, final_lr=0.1)
    assert lr_factor(settings, at=0.05) == pytest.approx(0.5)
    assert lr_factor(settings, at=0.3) == 1.0
    assert lr_factor(settings, at=0.75) == pytest.approx(0.1 + 0.9 * 0.5)
    assert lr_factor(settings, at=1.0) == pytest.approx(0.1)


def test_muon_gets_the_hidden_matrices_and_nothing_else() -> None:
    model = tiny_model()
    adamw, muon = build_optimizers(model, config())
    names = {id(p): n for n, p in model.named_parameters()}
    in_muon = {names[id(p)] for g in muon.param_groups for p in g["params"]}
    in_adamw = {names[id(p)] for g in adamw.param_groups for p in g["params"]}
    assert all("proj" in name for name in in_muon)
    assert len(in_muon) == 7  # q k v o gate up down of one layer
    assert in_muon | in_adamw == set(names.values())
    assert not in_muon & in_adamw


def test_checkpoints_hold_no_pickle(tmp_path: Path) -> None:
    objective, place = Documents(steps=4), context(tmp_path)
    objective.signal_at = 1
    with pytest.raises(Interrupted):
        train(objective, config(), place)
    (step,) = (place.run / "checkpoints").glob("step-2")
    assert {p.suffix for p in step.iterdir()} == {".safetensors", ".json"}
    json.loads((step / "state.json").read_text())
