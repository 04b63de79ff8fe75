"""Linear layers for generation: weights laid out once, layers that read one input as one product.

On a CPU a matrix product lays its weights out anew in every call, and under autocast it rounds them
anew, too: with the few rows of a step that is most of its time. Here both are done once for many
steps. Layers that are given the same tensor (queries, keys and values; the gate and the way up) are
found by watching one call, whatever the model calls them.

The model is only borrowed: outside of the context its layers are what they were.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rung.model.adapters import route
from rung.model.types import PreTrainedModel

ROWS = 64  # the number of rows that the layout is chosen for; others run with it


class PackedLinears:
    """The weights of a model's linear layers as they are now, in `dtype`, ready for steps.

    Use it as a context around calls of the model, without gradients. Make a new one when the
    weights have changed. On other devices than CPUs it does nothing.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        self._groups: list[LinearGroup] = []
        if model.device.type == "cpu" and torch.backends.mkldnn.is_available():
            self._groups = [LinearGroup(layers, dtype) for layers in _by_input(model)]

    def group_of(self, layers: Sequence[nn.Module]) -> "LinearGroup | None":
        """The group of exactly these layers, in this order."""
        wanted = list(map(id, layers))
        return next((g for g in self._groups if list(map(id, g.layers)) == wanted), None)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        try:
            for group in self._groups:
                group.take_over()
            yield
        finally:
            for group in self._groups:
                group.give_back()


class LinearGroup:
    """Layers that read one input. Their outputs are parts of one product, made for the first of
    them that is called."""

    def __init__(self, layers: Sequence[nn.Module], dtype: torch.dtype) -> None:
        self.layers, self.dtype = layers, dtype
        weights = [_weight(layer) for layer in layers]
        self.sizes = [len(weight) for weight in weights]
        whole = torch.cat([weight.to(dtype) for weight in weights])
        self._weight = torch.ops.mkldnn._reorder_linear_weight(whole, ROWS)
        biases = [getattr(layer, "bias", None) for layer in layers]
        self._bias: Tensor | None = None
        if any(bias is not None for bias in biases):
            filled = zip(biases, weights, strict=True)
            self._bias = torch.cat(
                [(w.new_zeros(len(w)) if b is None else b.detach()).to(dtype) for b, w in filled]
            )
        self._input: Tensor | None = None
        self._outputs: Sequence[Tensor] = ()
        self._left = 0

    def take_over(self) -> None:
        for number, layer in enumerate(self.layers):
            layer.forward = self._forward_of(number)

    def give_back(self) -> None:
        for layer in self.layers:
            layer.__dict__.pop("forward", None)
        self._input, self._outputs = None, ()

    def _forward_of(self, number: int) -> Any:
        if len(self.layers) == 1:
            return self.product

        def forward(x: Tensor) -> Tensor:
            if x is not self._input:
                self._outputs = self.product(x).split(self.sizes, dim=-1)
                self._input, self._left = x, len(self.layers)
            out = self._outputs[number]
            self._left -= 1
            if not self._left:
                self._input, self._outputs = None, ()
            return out

        return forward

    def product(self, x: Tensor) -> Tensor:
        """The outputs of all layers beside each other."""
        return torch.ops.mkldnn._linear_pointwise(
            x.to(self.dtype), self._weight, self._bias, "none", [], ""
        )


def _weight(layer: Any) -> Tensor:
    """[O, I]"""
    weight: Tensor = layer.weight.detach()
    return weight.T.contiguous() if isinstance(layer, Conv1D) else weight


def _by_input(model: PreTrainedModel) -> list[list[nn.Module]]:
    """The linear layers, those that are given one tensor together, in the order of their calls.

    Layers with adapters keep their own forward: their weights are frozen in the right type already.
    """
    inputs: list[Tensor] = []  # kept, so that none takes another's place in memory
    groups: list[list[nn.Module]] = []

    def note(layer: nn.Module, args: tuple[Any, ...]) -> None:
        if inputs and args[0] is inputs[-1]:
            groups[-1].append(layer)
        else:
            inputs.append(args[0])
            groups.append([layer])

    plain = [m for m in model.modules() if type(m) in (nn.Linear, Conv1D)]
    hooks = [layer.register_forward_pre_hook(note) for layer in plain]
    borrowed: Any = model
    route(model, [])
    try:
        borrowed(input_ids=torch.zeros((1, 1), dtype=torch.int64), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return groups
