"""Parts of a model that are one call in a step instead of many: RMS norms and rotary positions.

On a CPU each of torch's operations costs some microseconds whatever it does, and a step of a few
rows has hundreds. A part is replaced only where a trial gives what the model's own code gives, so
that other families keep theirs. The model is only borrowed: outside of the context it is what it
was.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rung.engine import steps
from rung.model.types import PreTrainedModel

ROTARY = "apply_rotary_pos_emb"  # what transformers calls it, in the module of each family
Rotary = Callable[..., tuple[Tensor, Tensor]]


class FusedParts:
    """What of a model can be replaced. Use it as a context around calls without gradients."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._norms: list[tuple[nn.Module, Any]] = []
        self._rotary: list[tuple[Any, Rotary, Rotary]] = []  # module of a family, its, ours
        if model.device.type != "cpu":
            return
        for part in model.modules():
            forward = _norm_forward(part) if "RMSNorm" in type(part).__name__ else None
            if forward is not None:
                self._norms.append((part, forward))
        for name in sorted({type(part).__module__ for part in model.modules()}):
            family = sys.modules[name]
            own = getattr(family, ROTARY, None)
            if own is not None and _turns_alike(own):
                self._rotary.append((family, own, _rotary_with(own)))

    @contextmanager
    def __call__(self) -> Iterator[None]:
        try:
            for norm, forward in self._norms:
                norm.forward = forward
            for family, _, ours in self._rotary:
                setattr(family, ROTARY, ours)
            yield
        finally:
            for norm, _ in self._norms:
                norm.__dict__.pop("forward", None)
            for family, own, _ in self._rotary:
                setattr(family, ROTARY, own)


def _norm_forward(norm: Any) -> Callable[[Tensor], Tensor] | None:
    """A forward that gives what the norm's own gives; None where there is none."""
    weight = getattr(norm, "weight", None)
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if weight is None or weight.dim() != 1 or eps is None or not steps.can_norm(weight):
        return None
    own = norm.forward
    rows = torch.linspace(-2, 3, 2 * len(weight)).view(2, -1).sin()
    kinds = {kind: own(rows.to(kind)).dtype for kind in steps.KINDS}
    for offset in (0.0, 1.0):  # Gemma's weights are differences from 1
        ours = steps.rms_norm(rows, weight, eps=eps, offset=offset, kind=kinds[rows.dtype])
        if _alike(ours, own(rows)):
            break
    else:
        return None

    def forward(hidden_states: Tensor) -> Tensor:
        kind = kinds.get(hidden_states.dtype)
        if kind is None:
            return own(hidden_states)
        return steps.rms_norm(hidden_states, norm.weight, eps=eps, offset=offset, kind=kind)

    return forward


def _turns_alike(own: Rotary) -> bool:
    """Whether a family's rotary positions are those of `steps.turn`."""
    x = torch.linspace(-2, 3, 2 * 3 * 64).view(2, 3, 1, 64).sin()
    cos, sin = torch.linspace(-1, 1, 2 * 2 * 64).view(2, 2, 1, 64)
    if not steps.can_turn(x, cos):
        return False
    try:
        theirs = own(x, x[:, :1], cos, sin)
    except (TypeError, RuntimeError, ValueError):  # another way to be called
        return False
    ours = (steps.turn(x, cos, sin), steps.turn(x[:, :1], cos, sin))
    return len(theirs) == 2 and all(map(_alike, ours, theirs))


def _rotary_with(own: Rotary) -> Rotary:
    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> Any:
        # a module is shared with other threads, which may be training
        plain = torch.is_inference_mode_enabled() and not args and not kwargs
        if plain and steps.can_turn(q, cos) and steps.can_turn(k, cos):
            return steps.turn(q, cos, sin), steps.turn(k, cos, sin)
        return own(q, k, cos, sin, *args, **kwargs)

    return rotate


def _alike(ours: Tensor, theirs: Tensor) -> bool:
    close = ours.shape == theirs.shape and ours.dtype == theirs.dtype
    # as near as sums in another order come: bf16 rounds where the model's own code does
    tolerance = 1e-5 if ours.dtype == torch.float32 else 1e-2
    return close and torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance)
