"""Muon for many small matrices: like shapes are orthogonalised in one batch.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon), with the coefficients, Nesterov momentum and
learning-rate scale of torch.optim.Muon, whose one-by-one products cost a small model a tenth of its
step (docs/training.md).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rung.model.precision import pick_dtype

# Newton-Schulz: X <- a X + (b A + c A A) X with A = X X^T. Steep at zero, so that five rounds
# bring every singular value near 1.
COEFFICIENTS = (3.4445, -4.775, 2.0315)
ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """params: two-dimensional. lr: for a matrix [rows, columns], x sqrt(max(1, rows / columns))."""

    def __init__(
        self, params: Any, *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "the loss is made before the step"
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            updates = self._momentum(params, group["momentum"])
            if group["weight_decay"]:
                torch._foreach_mul_(params, 1.0 - group["lr"] * group["weight_decay"])
            for alike in _alike(updates):
                stack = orthogonalise(torch.stack([_wide(updates[i]) for i in alike]))
                rows, columns = params[alike[0]].shape
                for index, update in zip(alike, stack.unbind(), strict=True):
                    turned = update.T if rows > columns else update
                    scale = math.sqrt(max(1.0, rows / columns))
                    params[index].add_(turned, alpha=-group["lr"] * scale)

    def _momentum(self, params: list[torch.nn.Parameter], momentum: float) -> list[Tensor]:
        """Nesterov's look ahead of the running mean of gradients."""
        grads = [p.grad for p in params if p.grad is not None]
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        means = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(means, grads, 1.0 - momentum)
        return list(torch._foreach_lerp(grads, means, momentum))


def orthogonalise(stack: Tensor) -> Tensor:
    """Matrices [B, R, C], R <= C, with singular values brought near 1 (0.7 to 1.2)."""
    a, b, c = COEFFICIENTS
    x = stack.to(pick_dtype("auto", stack.device))
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp_(min=1e-7)
    for _ in range(ROUNDS):
        gram = torch.bmm(x, x.transpose(1, 2))
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(stack.dtype)


def _wide(matrix: Tensor) -> Tensor:
    return matrix.T if matrix.shape[0] > matrix.shape[1] else matrix


def _alike(matrices: list[Tensor]) -> list[list[int]]:
    """Indices of `matrices` by shape, in the order of their first."""
    by_shape: dict[torch.Size, list[int]] = {}
    for index, matrix in enumerate(matrices):
        by_shape.setdefault(matrix.shape, []).append(index)
    return list(by_shape.values())
