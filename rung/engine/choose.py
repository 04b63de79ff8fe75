"""The next token of every row, from logits and one uniform number a row.

By inverse CDF: torch.multinomial over a vocabulary costs the CPU more than the model does. Each row
has settings of its own, and what is chosen for it does not depend on the other rows.

    B rows, V vocabulary, C candidates
"""

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from rung.engine import steps
from rung.engine.sampling import Sampling
from rung.engine.steps import RUN
from rung.errors import TrainingError

CANDIDATES = 256  # likeliest tokens to truncate among; where they are too few, all are sorted


def choose(logits: Tensor, uniforms: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """Token ids int64 [B]. logits: [B, V], uniforms: float64 [B] in [0, 1), samplings: B of them.

    TrainingError when no logit of a row is finite: the weights are damaged.
    """
    kinds: dict[tuple[bool, bool], list[int]] = {}
    for row, sampling in enumerate(samplings):
        kinds.setdefault((sampling.temperature == 0, sampling.truncates), []).append(row)
    if len(kinds) == 1:
        return _choose_alike(logits, uniforms, samplings)
    chosen = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    for rows in kinds.values():
        at = torch.tensor(rows, device=logits.device)
        part = [samplings[row] for row in rows]
        chosen[at] = _choose_alike(logits[at], uniforms[at], part)
    return chosen


def _choose_alike(logits: Tensor, uniforms: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """Rows that are all greedy, or all plain, or all truncated."""
    first = samplings[0]
    if first.temperature == 0:
        top, ids = logits.max(-1)
        _check_finite(top)
        return ids
    heat = _column(samplings, "temperature", logits)
    if not first.truncates and steps.can_draw(logits):
        drawn = steps.draw(logits, uniforms.contiguous(), heat[:, 0].contiguous())
        return drawn if bool((drawn >= 0).all()) else _damaged()
    probs = torch.softmax(logits.float() / heat, -1)
    if not first.truncates:
        return _invert(probs, uniforms)
    return _truncated(probs, uniforms, samplings)


def _truncated(probs: Tensor, uniforms: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """Top-k, top-p and min-p among the likeliest tokens; all are sorted where those do not do."""
    count = min(CANDIDATES, probs.shape[-1])
    top, order = torch.topk(probs, count)
    chosen = _draw(top, order, uniforms, samplings)
    if count == probs.shape[-1]:
        return chosen
    short = [row for row, done in enumerate(_suffices(top, samplings).tolist()) if not done]
    if short:
        at = torch.tensor(short, device=probs.device)
        rest = torch.sort(probs[at], dim=-1, descending=True, stable=True)
        part = [samplings[row] for row in short]
        chosen[at] = _draw(rest.values, rest.indices, uniforms[at], part)
    return chosen


def _suffices(top: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """Whether [B] all that is kept is among the candidates: k tokens, or p of the whole, or all
    that is above the floor."""
    by_count = torch.tensor([0 < s.top_k <= top.shape[-1] for s in samplings], device=top.device)
    reach = top.sum(-1, dtype=torch.float64)
    by_mass = reach >= _column(samplings, "top_p", reach)[:, 0] * (1 + 1e-6)
    by_floor = top[:, -1] < _column(samplings, "min_p", top)[:, 0] * top[:, 0]
    return by_count | by_mass | by_floor


def _draw(top: Tensor, order: Tensor, uniforms: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    return order.gather(-1, _invert(_keep(top, samplings), uniforms)[:, None]).squeeze(-1)


def _keep(top: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """Probabilities [B, C], likeliest first, with 0 for what is left out."""
    floor = _column(samplings, "min_p", top) * top[:, :1]
    width = top.shape[-1]
    ranks = torch.tensor([s.top_k or width for s in samplings], device=top.device)
    places = torch.arange(width, device=top.device)
    top = top.masked_fill(places >= ranks[:, None], 0)
    # Top-p counts within what top-k left, and without a k within the whole.
    total = top.sum(-1, keepdim=True, dtype=torch.float64)
    without = torch.tensor([s.top_k == 0 for s in samplings], device=top.device)
    total = total.masked_fill(without[:, None], 1.0)
    # A token stays while the likelier ones before it have less than top_p together.
    before = top.cumsum(-1, dtype=torch.float64) - top
    limit = _column(samplings, "top_p", total)
    return top.masked_fill((before >= limit * total) & (limit < 1) | (top < floor), 0)


def _invert(probs: Tensor, uniforms: Tensor) -> Tensor:
    """First index whose cumulative probability passes uniform x total; never one of probability 0.

    In two steps, runs of tokens and then tokens of a run: one pass over V in float32, and sums in
    float64 of a few hundred numbers only, so that rare tokens are not lost in a large vocabulary.
    """
    rows, vocab = probs.shape
    runs = -(-vocab // RUN)
    if runs * RUN != vocab:
        probs = torch.nn.functional.pad(probs, (0, runs * RUN - vocab))
    parts = probs.view(rows, runs, RUN)
    ends = parts.sum(-1, dtype=torch.float64).cumsum(-1)
    total = ends[:, -1:]
    _check_finite(total)
    goal = uniforms[:, None] * total
    run = torch.searchsorted(ends, goal, right=True)
    before = torch.where(run > 0, ends.gather(1, (run - 1).clamp(min=0)), 0.0)
    inside = parts[torch.arange(rows, device=probs.device), run[:, 0]].cumsum(
        -1, dtype=torch.float64
    )
    # the sum of a run rounds in another order than its running sums: the last token takes the rest
    last = (inside < inside[:, -1:]).sum(-1, keepdim=True)
    place = torch.searchsorted(inside, goal - before, right=True).minimum(last)
    return (run * RUN + place).squeeze(-1)


def _column(samplings: Sequence[Sampling], name: str, like: Tensor) -> Tensor:
    """One setting of each row, [B, 1], in the type of `like` where that is a float of 32 bits+."""
    values = np.array([getattr(sampling, name) for sampling in samplings], dtype=np.float64)
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.from_numpy(values).to(like.device, dtype)[:, None]


def _check_finite(values: Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        _damaged()


def _damaged() -> NoReturn:
    raise TrainingError(
        "the model's logits are not finite (nan or inf), so nothing can be sampled;"
        " its weights are damaged: go back to an earlier checkpoint"
    )


def token_logps(logits: Tensor, chosen: Tensor, *, num_top: int) -> tuple[Any, Any, Any]:
    """Log-probabilities float32 [B] of tokens, and ids and values [B, K] of the likeliest."""
    logits = logits.float()
    lse = torch.logsumexp(logits, -1, keepdim=True)
    own = (logits.gather(-1, chosen[:, None]) - lse).squeeze(-1)
    top, ids = torch.topk(logits, min(num_top, logits.shape[-1]))
    return own.cpu().numpy(), ids.int().cpu().numpy(), (top - lse).cpu().numpy()
