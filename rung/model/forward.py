"""From a packed forest to log-probabilities: the one place where logits are made in training.

    T tokens, N trained tokens, S segments, V vocabulary, W width

The vocabulary axis is never held for all tokens at once: rows go through the head in chunks, and
only predictor rows at all (performance: the logits are the largest activation of a small model).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rung.errors import ConfigError
from rung.model.attention import TorchForest
from rung.model.types import PreTrainedModel

CHUNK = 512  # rows of logits at once: what is made of them stays in the caches


@dataclass(frozen=True)
class Head:
    """The output layer: logits = softcap(hidden @ weight.T + bias) with an optional scale."""

    weight: Tensor  # [V, W]
    bias: Tensor | None
    scale: float = 1.0
    softcap: float = 0.0


def output_head(model: PreTrainedModel) -> Head:
    """The head of any transformers causal LM, with the scalings some families apply to logits."""
    layer = model.get_output_embeddings()
    if layer is None:
        raise ConfigError(f"{type(model).__name__} has no output embeddings: not a causal LM")
    config: Any = model.config
    scale = float(getattr(config, "logit_scale", None) or 1.0)  # Cohere multiplies
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)  # Granite divides
    softcap = float(getattr(config, "final_logit_softcapping", None) or 0.0)  # Gemma
    return Head(layer.weight, getattr(layer, "bias", None), scale, softcap)


def head_logits(model: PreTrainedModel, rows: Tensor) -> Tensor:
    """Logits float32 [..., V] of hidden states [..., W], scaled and capped as the model does it."""
    head = output_head(model)
    layer: Any = model.get_output_embeddings()
    logits = layer(rows).float() * head.scale
    return torch.tanh(logits / head.softcap) * head.softcap if head.softcap else logits


def hidden_states(model: PreTrainedModel, forest: TorchForest) -> Tensor:
    """Last hidden states [T, W] of every token of the forest (after the final norm)."""
    decoder: Any = model.base_model
    output = decoder(
        input_ids=forest.ids[None],
        position_ids=forest.positions[None],
        use_cache=False,
        forest=forest.handle,
    )
    return output.last_hidden_state[0]


def target_logps(model: PreTrainedModel, forest: TorchForest) -> tuple[Tensor, Tensor]:
    """(log-probability, entropy) of each trained token, both float32 [N].

    The log-probability is differentiable; the entropy (nats) is for metrics and carries no
    gradient.
    """
    return logps_of(output_head(model), hidden_states(model, forest), forest)


def logps_of(head: Head, hidden: Tensor, forest: TorchForest) -> tuple[Tensor, Tensor]:
    """As `target_logps`, from hidden states [T, W] that the caller needs elsewhere, too."""
    rows = hidden.index_select(0, forest.predictor)
    bias = head.bias if head.bias is not None else rows.new_zeros(0)
    return _Logps.apply(rows, head.weight, bias, forest.target, head.scale, head.softcap)


def weighted_nll(model: PreTrainedModel, forest: TorchForest) -> Tensor:
    """-(weight * logp).sum() over trained tokens: a scalar sum, its gradient made on the way."""
    rows = hidden_states(model, forest).index_select(0, forest.predictor)
    head = output_head(model)
    bias = head.bias if head.bias is not None else rows.new_zeros(0)
    return _WeightedNLL.apply(
        rows, head.weight, bias, forest.target, forest.weight, head.scale, head.softcap
    )


def segment_sums(values: Tensor, forest: TorchForest) -> Tensor:
    """Sums of per-target values [N] over the segment each target belongs to: [S]."""
    return values.new_zeros(forest.num_segments).index_add(0, forest.target_seg, values)


def _compute_dtype(rows: Tensor) -> torch.dtype:
    kind = rows.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else rows.dtype


def _chunk_logits(
    rows: Tensor, weight: Tensor, bias: Tensor, scale: float, softcap: float
) -> tuple[Tensor, Tensor | None]:
    """Logits [C, V] and the slope of the softcap (None without one).

    As the product gives them (perhaps bf16) where nothing is done to them, else float32.
    """
    logits = rows @ weight.T
    if not bias.numel() and scale == 1.0 and not softcap:
        return logits, None
    logits = logits.float()
    if bias.numel():
        logits += bias.float()
    if scale != 1.0:
        logits *= scale
    if not softcap:
        return logits, None
    bent = torch.tanh(logits / softcap)
    return bent * softcap, 1 - bent * bent


class _HeadGradients:
    """Adds up the head's gradients over chunks; the weight's in float32, None of a frozen one."""

    def __init__(self, rows: Tensor, weight: Tensor, bias: Tensor, *, frozen: bool) -> None:
        self.rows = torch.empty_like(rows)
        self.weight = None if frozen else torch.zeros_like(weight, dtype=torch.float32)
        self.bias = torch.zeros(bias.shape, dtype=torch.float32, device=bias.device)

    def add(self, part: slice, d_logits: Tensor, by: Tensor, rows: Tensor, table: Tensor) -> None:
        """d_logits [C, V], with respect to the unscaled, uncapped logits, in units of `by` [C]:
        a factor of a row costs less on the C x W side of either product."""
        by = by[:, None]
        if self.bias.numel():
            self.bias += (d_logits * by).sum(0)
        d_logits = d_logits.to(table.dtype)
        self.rows[part] = (d_logits @ table) * by.to(table.dtype)
        if self.weight is not None:
            self.weight += d_logits.T @ (rows * by.to(rows.dtype))


def _minus_one_hot(probs: Tensor, target: Tensor) -> Tensor:
    """probs [C, V] less 1 at the target, in place: the slope of -log p in the logits."""
    probs[torch.arange(len(target), device=probs.device), target] -= 1  # scatter_add_ copies all
    return probs


class _Logps(torch.autograd.Function):
    """Chunked log-softmax at the targets; logits are computed again in the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor,
        target: Tensor,
        scale: float,
        softcap: float,
    ) -> tuple[Tensor, Tensor]:
        dtype = _compute_dtype(rows)
        small, table = rows.to(dtype), weight.to(dtype)
        logp = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
        entropy = torch.empty_like(logp)
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            logits, _ = _chunk_logits(small[part], table, bias, scale, softcap)
            logits = logits.float()
            chosen = logits.gather(1, target[part, None]).squeeze(1)
            lse = torch.logsumexp(logits, -1)
            logp[part] = chosen - lse
            p = torch.exp(logits - lse[:, None])
            entropy[part] = lse - (p * logits).sum(-1)
        ctx.save_for_backward(rows, weight, bias, target)
        ctx.form = (dtype, scale, softcap)
        ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, bias, target = ctx.saved_tensors
        dtype, scale, softcap = ctx.form
        small, table = rows.to(dtype), weight.to(dtype)
        total = _HeadGradients(rows, weight, bias, frozen=not ctx.needs_input_grad[1])
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            logits, slope = _chunk_logits(small[part], table, bias, scale, softcap)
            d = _minus_one_hot(torch.softmax(logits, -1), target[part])
            d = d if slope is None else d.mul_(slope)
            total.add(part, d, -scale * grad[part], small[part], table)
        return (
            total.rows,
            None if total.weight is None else total.weight.to(weight.dtype),
            total.bias.to(bias.dtype),
            None,
            None,
            None,
        )


class _WeightedNLL(torch.autograd.Function):
    """Sum of weighted negative log-likelihoods; the gradient is made with the loss, in one pass."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor,
        target: Tensor,
        weights: Tensor,
        scale: float,
        softcap: float,
    ) -> Tensor:
        dtype = _compute_dtype(rows)
        small, table = rows.to(dtype), weight.to(dtype)
        needs = any(ctx.needs_input_grad)
        frozen = not ctx.needs_input_grad[1]
        total = _HeadGradients(rows, weight, bias, frozen=frozen) if needs else None
        loss = torch.zeros((), dtype=torch.float64, device=rows.device)
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            logits, slope = _chunk_logits(small[part], table, bias, scale, softcap)
            if total is None:
                logp = torch.log_softmax(logits.float(), -1).gather(1, target[part, None])
                loss -= (logp.squeeze(1) * weights[part]).sum(dtype=torch.float64)
                continue
            # One pass in the dtype of the product, which its gradient is rounded to anyway. Of
            # the loss it rounds the third digit of a token, either way.
            d = torch.softmax(logits, -1)
            p = d.gather(1, target[part, None]).squeeze(1).float().clamp_(min=1e-38)
            loss -= (p.log_() * weights[part]).sum(dtype=torch.float64)
            d = _minus_one_hot(d, target[part])
            d = d if slope is None else d.mul_(slope)
            total.add(part, d, scale * weights[part], small[part], table)
        if total is not None:
            table_grad = None if total.weight is None else total.weight.to(weight.dtype)
            ctx.save_for_backward(total.rows, table_grad, total.bias)
        return loss.float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, bias = ctx.saved_tensors
        table_grad = None if weight is None else weight * grad
        return rows * grad, table_grad, bias * grad, None, None, None, None
