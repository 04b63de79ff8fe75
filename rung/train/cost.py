"""What a stage that trains on answers cost, in the words of every stage's notes."""

from typing import Any

from torch import nn

from rung.train.loop import TrainResult


def cost_notes(result: TrainResult, model: nn.Module, *, extra_forwards: float) -> dict[str, Any]:
    """Seconds, tokens, FLOP and last metrics of a run.

    FLOP is 6 per parameter and trained token (Kaplan et al. 2020, section 2.1; attention products
    are left out), plus 2 for each of `extra_forwards`: passes without a gradient per trained token
    (reference, reward model, generation).
    """
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "seconds": result.seconds,
        "tokens": result.tokens,
        "flops": (6 + 2 * extra_forwards) * num_parameters * result.tokens,
        "last": result.last,
        "stopped": result.stopped,
    }
