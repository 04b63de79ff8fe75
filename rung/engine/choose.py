"""The next token of every row, from logits and one uniform number a row.

By inverse CDF: torch.multinomial over a vocabulary costs the CPU more than the model does.

    B rows, V vocabulary
"""

import torch
from torch import Tensor

from rung.engine.sampling import Sampling
from rung.errors import TrainingError


def choose(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> Tensor:
    """Token ids int64 [B]. logits: [B, V], uniforms: float64 [B] in [0, 1).

    TrainingError when the logits are not finite: the weights are damaged.
    """
    if sampling.temperature == 0:
        top, ids = logits.max(-1)
        _check_finite(top)
        return ids
    scaled = logits.float() / sampling.temperature
    probs = torch.softmax(scaled, -1)
    vocab = probs.shape[-1]
    if (sampling.top_k == 0 or sampling.top_k >= vocab) and sampling.top_p >= 1:
        return _invert(probs, uniforms)
    if sampling.top_k and sampling.top_k < vocab:
        probs, order = torch.topk(probs, sampling.top_k)
        probs = probs / probs.sum(-1, keepdim=True)  # top-p counts within what top-k left
    else:
        probs, order = torch.sort(probs, dim=-1, descending=True, stable=True)
    if sampling.top_p < 1:
        # A token stays while the likelier ones before it have less than top_p together.
        before = probs.cumsum(-1, dtype=torch.float64) - probs
        probs = probs.masked_fill(before >= sampling.top_p, 0)
    return order.gather(-1, _invert(probs, uniforms)[:, None]).squeeze(-1)


def _invert(probs: Tensor, uniforms: Tensor) -> Tensor:
    """First index whose cumulative probability passes uniform x total; never one of probability 0.

    Sums in float64: over a large vocabulary, float32 sums would shift rare tokens.
    """
    cdf = probs.cumsum(-1, dtype=torch.float64)
    total = cdf[:, -1:]
    _check_finite(total)
    return torch.searchsorted(cdf, uniforms[:, None] * total, right=True).squeeze(-1)


def _check_finite(values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise TrainingError(
            "the model's logits are not finite (nan or inf), so nothing can be sampled;"
            " its weights are damaged: go back to an earlier checkpoint"
        )
