"""One record of what training cost: written by every training stage, read by the report."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rung.evals.cost import cost_of
from rung.store.artefact import Artefact
from rung.train import cost
from rung.train.loop import TrainResult

MODEL = nn.Linear(10, 9)  # 99 parameters
PEAK = 5e6


@pytest.fixture(autouse=True)
def _peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "measure_peak_flops", lambda dtype, device: PEAK)


def result(**values: Any) -> TrainResult:
    """1,000 tokens in all, of them 400 in the 2 seconds since a resume."""
    given: dict[str, Any] = {
        "iterations": 7,
        "tokens": 1000,
        "session_tokens": 400,
        "seconds": 2.0,
        "skipped": 1,
        "stopped": "",
        "last": {"loss": 3.5},
        "resumed_at": 4,
        "dtype": torch.bfloat16,
    }
    return TrainResult(**{**given, **values})


def test_by_hand() -> None:
    notes = cost.cost_notes(result(), MODEL, extra_forwards=0.5)
    flops = (6 + 2 * 0.5) * 99 * 1000
    assert notes == {
        "tokens": 1000,
        "flops": flops,
        "train_seconds": 2.0,
        "tokens_per_s": 200.0,
        "mfu": pytest.approx(flops / 1000 * 200 / PEAK),  # 693 FLOP a token, 200 tokens/s
        "gemm_peak_tflops": 5e-6,
        "dtype": "bfloat16",
        "skipped_updates": 1,
        "last": {"loss": 3.5},
        "stopped": "",
    }


def test_a_stage_that_knows_better_says_so() -> None:
    notes = cost.cost_notes(result(), MODEL, tokens=900, flops=2e6)
    # the speed counts what went through the model, and so does the work of a token
    assert (notes["tokens"], notes["flops"], notes["tokens_per_s"]) == (900, 2e6, 200.0)
    assert notes["mfu"] == pytest.approx(2e6 / 1000 * 200 / PEAK)


def test_nothing_trained_is_no_speed() -> None:
    notes = cost.cost_notes(result(tokens=0, session_tokens=0, seconds=0.0), MODEL)
    assert (notes["tokens_per_s"], notes["mfu"], notes["flops"]) == (0.0, 0.0, 0.0)


def test_the_report_reads_what_training_wrote(tmp_path: Path) -> None:
    notes = {**cost.cost_notes(result(), MODEL), "seconds": 9.0, "peak_rss_gb": 1.5}
    read = cost_of(Artefact("id", "model", tmp_path, "dpo", {}, {}, {}, notes))
    assert (read.seconds, read.peak_rss_gb, read.tokens) == (9.0, 1.5, 1000)
    assert (read.flop, read.tokens_per_s) == (notes["flops"], 200.0)
    assert read.mfu == notes["mfu"] > 0
