"""What a stage cost: tokens, floating-point operations, and money on a rented GPU."""

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rung.store.artefact import Artefact

GPU = "one H100 at 2.50 USD an hour, doing 40 % of its 989 TFLOP/s in bf16"
GPU_USD_PER_HOUR = 2.50
GPU_FLOPS = 0.40 * 989e12


@dataclass(frozen=True)
class Cost:
    """seconds on this machine; tokens through training; operations; USD on the GPU above.

    None = not known or no training. Only forward and backward passes of training count: sampling
    and grading are in the seconds alone. mfu: share of the peak of this machine's matrix products.
    """

    seconds: float
    peak_rss_gb: float | None
    tokens: int | None
    flop: float | None
    tokens_per_s: float | None = None
    mfu: float | None = None

    @property
    def usd(self) -> float | None:
        return None if self.flop is None else self.flop / GPU_FLOPS / 3600 * GPU_USD_PER_HOUR


def cost_of(artefact: Artefact, steps: Sequence[dict[str, Any]] = ()) -> Cost:
    """From the notes of an artefact, else from the logged steps of its run."""
    notes = artefact.notes
    tokens = None
    flop = None
    if artefact.kind in ("model", "classifier", "reward-model"):
        logged = sum(float(step.get("tokens", 0)) for step in steps)
        tokens = _positive(notes.get("tokens")) or _positive(logged)
        flop = _positive(notes.get("flops"))
        parameters = count_parameters(artefact)
        if flop is None and tokens is not None and parameters:
            flop = 6.0 * parameters * tokens  # Kaplan et al. 2020: 2 forward, 4 backward
    return Cost(
        seconds=float(notes.get("seconds") or 0.0),
        peak_rss_gb=_positive(notes.get("peak_rss_gb")),
        tokens=None if tokens is None else round(tokens),
        flop=flop,
        tokens_per_s=_positive(notes.get("tokens_per_s")),
        mfu=_positive(notes.get("mfu")),
    )


def count_parameters(artefact: Artefact) -> int:
    """Parameters in model.safetensors, from its header alone; 0 without that file."""
    if "model.safetensors" not in artefact.files:
        return 0
    with artefact.file("model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return sum(math.prod(entry["shape"]) for entry in header.values())


def _positive(value: Any) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
    return float(value) if good else None
