"""The adapted linear layer: peft's parameters and files, with a forward of our own.

    T tokens, I inputs, O outputs, R rank

LoRA (Hu et al. 2021, equation 3) is y = x W^T + s (x A^T) B^T with s = alpha / R, and rsLoRA
(Kalajdzievski 2023, equation 6) the same with s = alpha / sqrt(R). DoRA (Liu et al. 2024, equation
5) multiplies each output by m / |W + s B A|, the norm of the row taken as a constant (section 4.3).

Two things differ from peft's own forward, for memory and speed; the numbers are the same. q, k and
v read one input, and so do the gate and the way up: it is kept once, in the compute type, not once
a layer. And the low-rank product is added inside the matrix product, not as a tensor of its own.

This module imports peft, so nothing imports it before an adapter is asked for.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rung.model.fourbit import FourBit


class LoraLinear(PeftLinear):
    """A frozen linear layer with named adapters. using: the one that is on, None: all are off."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, **options: Any) -> None:
        super().__init__(base_layer, adapter_name, **options)
        self.using: str | None = adapter_name
        self.routes: list[tuple[str, Tensor]] | None = None  # rows of a batch by adapter

    def weight_in(self, dtype: torch.dtype) -> Tensor:
        """The frozen weight [O, I]."""
        base = self.base_layer
        if isinstance(base, FourBit):
            return base.weight_in(dtype)
        weight = base.weight.detach().to(dtype)
        return weight.T if isinstance(base, Conv1D) else weight

    def row_norms(self, name: str) -> Tensor:
        """|W + s B A| of each output, float32 [O]."""
        with torch.no_grad():
            delta = self.lora_B[name].weight.float() @ self.lora_A[name].weight.float()
            return (self.weight_in(torch.float32) + self.scaling[name] * delta).norm(dim=1)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        assert not args
        assert not kwargs
        dtype = _compute_dtype(x)
        bias = self.base_layer.bias
        if self.routes is not None:
            return self._routed(x.to(dtype), self.routes)
        low, name = _cast_once(x, dtype), self.using
        if name is None or name not in self.lora_A:
            out = _Adapted.apply(x, low, self.weight_in, None, None, 0.0, None)
            return out if bias is None else out + bias.to(dtype)
        drop, keep = self.lora_dropout[name], None
        if self.training and isinstance(drop, nn.Dropout):
            keep = drop(torch.ones_like(low))
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        out = _Adapted.apply(x, low, self.weight_in, a, b, self.scaling[name], keep)
        if name in self.lora_magnitude_vector:
            # in float32: next to 1 the compute type has no room for what a magnitude learns
            magnitude = self.lora_magnitude_vector[name].weight
            with torch.autocast(x.device.type, enabled=False):
                out = (out * (magnitude / self.row_norms(name))).to(dtype)
        return out if bias is None else out + bias.to(dtype)

    def _routed(self, low: Tensor, routes: list[tuple[str, Tensor]]) -> Tensor:
        """Rows [B, T, I] of one batch, each with its own adapter; without gradients."""
        bias = self.base_layer.bias
        out = low @ self.weight_in(low.dtype).T
        for name, rows in routes:
            if name not in self.lora_A:
                continue
            a, b = self.lora_A[name].weight.to(low), self.lora_B[name].weight.to(low)
            part = out[rows] + self.scaling[name] * ((low[rows] @ a.T) @ b.T)
            if name in self.lora_magnitude_vector:
                magnitude = self.lora_magnitude_vector[name].weight
                part = (part * (magnitude / self.row_norms(name))).to(out)
            out[rows] = part
        return out if bias is None else out + bias.to(low.dtype)


class _Adapted(torch.autograd.Function):
    """x W^T + s (keep x A^T) B^T. W is asked for again in the backward: of a 4-bit base it is not
    kept in full."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        low: Tensor,
        weight_in: Callable[[torch.dtype], Tensor],
        a: Tensor | None,
        b: Tensor | None,
        scale: float,
        keep: Tensor | None,
    ) -> Tensor:
        flat = low.reshape(-1, low.shape[-1])
        out = flat @ weight_in(low.dtype).T
        ctx.weight_in, ctx.scale, ctx.form = weight_in, scale, (x.shape, x.dtype, low.dtype)
        if a is None or b is None:
            ctx.save_for_backward()
        else:
            hidden = _dropped(flat, keep) @ a.to(low.dtype).T
            out.addmm_(hidden, (scale * b).to(low.dtype).T)
            ctx.save_for_backward(low, hidden, a, b, keep)
        return out.view(*low.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        shape, x_dtype, dtype = ctx.form
        grad = grad.reshape(-1, grad.shape[-1]).to(dtype)
        dx = grad @ ctx.weight_in(dtype) if ctx.needs_input_grad[0] else None
        da = db = None
        if ctx.saved_tensors:
            low, hidden, a, b, keep = ctx.saved_tensors
            flat = low.reshape(-1, low.shape[-1])
            narrow = grad @ (ctx.scale * b).to(dtype)  # [T, R]
            if ctx.needs_input_grad[3]:
                da = (narrow.T @ _dropped(flat, keep)).to(a.dtype)
                db = (grad.T @ hidden).to(b.dtype).mul_(ctx.scale)
            if dx is not None and keep is None:
                dx.addmm_(narrow, a.to(dtype))
            elif dx is not None:
                dx += (narrow @ a.to(dtype)) * keep.reshape(flat.shape)
        dx = None if dx is None else dx.to(x_dtype).view(shape)
        return dx, None, None, da, db, None, None


def _dropped(flat: Tensor, keep: Tensor | None) -> Tensor:
    return flat if keep is None else flat * keep.reshape(flat.shape)


def _compute_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


# The last input that was cast and what came of it: (input, its version, result).
_last: tuple[weakref.ref[Tensor], int, Tensor] | None = None


def _cast_once(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` in `dtype`, without a gradient; layers that read the same input get the same tensor."""
    global _last
    if x.dtype == dtype or not torch.is_grad_enabled():
        return x.detach().to(dtype)
    last = _last  # read once: another thread may write it
    if last is not None and last[0]() is x and last[1] == x._version and last[2].dtype == dtype:
        return last[2]
    low = x.detach().to(dtype)
    _last = (weakref.ref(x), x._version, low)
    return low
