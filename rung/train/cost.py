"""What training cost, in the words of every stage's notes."""

from typing import Any

from torch import nn

from rung.model.peak import measure_peak_flops
from rung.train.loop import TrainResult


def share_of_full(model: nn.Module) -> float:
    """FLOP of training a token / that of training all weights: a frozen weight is passed through
    twice (forward, and backward to what is below), a trained one three times."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    trained = sum(size for size, grad in sizes if grad)
    return (2 + trained / sum(size for size, _ in sizes)) / 3


def cost_notes(
    result: TrainResult,
    model: nn.Module,
    *,
    extra_forwards: float = 0.0,
    tokens: int | None = None,
    flops: float | None = None,
) -> dict[str, Any]:
    """Tokens, FLOP, seconds, speed, share of the machine's peak (MFU) and last metrics of a run.

    FLOP is 6 per parameter and trained token (Kaplan et al. 2020, section 2.1; attention products
    are left out), plus 2 for each of `extra_forwards`: passes without a gradient per trained token
    (reference, reward model, generation). A stage that knows better gives `flops`, and `tokens`
    where not all that went through the model was trained. Speed and MFU are those of this process
    (after a resume: of the rest); rung/evals/cost.py reads them.
    """
    if flops is None:
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        each = 6 * share_of_full(model) + 2 * extra_forwards
        flops = each * num_parameters * result.tokens
    device = next(model.parameters()).device
    peak = measure_peak_flops(result.dtype, device)
    speed = result.session_tokens / result.seconds if result.seconds else 0.0
    return {
        "tokens": result.tokens if tokens is None else tokens,
        "flops": flops,
        "train_seconds": result.seconds,
        "tokens_per_s": speed,
        "mfu": flops / result.tokens * speed / peak if result.tokens else 0.0,
        "gemm_peak_tflops": peak / 1e12,
        "dtype": str(result.dtype).removeprefix("torch."),
        "skipped_updates": result.skipped,
        "last": result.last,
        "stopped": result.stopped,
    }
