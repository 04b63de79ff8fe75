"""Decoder layers of a step as eight calls: four products of packed weights, and C between them.

For layers built like Llama's (norm, attention with rotary positions, norm, SwiGLU), of whatever
family: they are known by their parts, and replaced only where a step with them gives what the
model's own code gives. A layer that reads a prompt, or has an adapter, keeps its own forward.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rung.engine import steps
from rung.engine.packed import LinearGroup, PackedLinears
from rung.engine.slots import Slots
from rung.model.types import PreTrainedModel

PARTS = {
    "": {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"},
    "self_attn": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "mlp": {"gate_proj", "up_proj", "down_proj", "act_fn"},
}


class FusedLayers:
    """Decoder layers of `model` for steps; inside `Ready`, with `packed` and the slots at work."""

    def __init__(self, model: PreTrainedModel, packed: PackedLinears) -> None:
        decoder: Any = model.base_model
        layers = list(getattr(decoder, "layers", ()))
        found = [(layer, _fuse(layer, packed)) for layer in layers]
        self._fused = [(layer, fused) for layer, fused in found if fused is not None]
        every = bool(layers) and len(self._fused) == len(layers)
        windows = getattr(model.config, "sliding_window", None)
        if not every or windows or not self._alike(model):
            self._fused = []

    def __bool__(self) -> bool:
        return bool(self._fused)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        try:
            for layer, fused in self._fused:
                layer.forward = fused
            yield
        finally:
            for layer, _ in self._fused:
                layer.__dict__.pop("forward", None)

    def _alike(self, model: PreTrainedModel) -> bool:
        """Whether two steps of two rows give what the model's own layers give."""
        own = _trial(model)
        with self():
            ours = _trial(model)
        # bf16 keeps 8 bits, and the parts round at other places than the layers' own
        tolerance = 0.02 if self._fused[0][1].dtype == torch.bfloat16 else 1e-4
        return float((ours - own).norm()) <= tolerance * float(own.norm())


def _trial(model: PreTrainedModel) -> Tensor:
    """Last hidden states of the second of two steps, two rows, float32."""
    slots = Slots(most_rows=2)
    slots.fit(rows=2, length=4)
    borrowed: Any = model
    for place in (0, 1):
        at = torch.tensor([place, place + 1])
        slots.begin_step(at, longest=place + 1)
        hidden = borrowed.base_model(
            input_ids=torch.tensor([[place + 1], [place + 2]]) % model.config.vocab_size,
            position_ids=at[:, None],
            past_key_values=slots,
            use_cache=True,
            slots=slots,
        ).last_hidden_state
    return hidden.float()


class _Norm(NamedTuple):
    weight: Tensor
    eps: float


class _Fused:
    """The forward of one layer."""

    def __init__(self, layer: Any, groups: dict[str, LinearGroup], norms: list[_Norm]) -> None:
        attention = layer.self_attn
        self._own = layer.forward
        self._index, self._scale = attention.layer_idx, attention.scaling
        self._width = attention.head_dim
        self._sizes = groups["attention"].sizes
        self._groups, self._norms = groups, norms
        self.dtype = groups["attention"].dtype

    def __call__(
        self,
        hidden_states: Tensor,
        *args: Any,
        position_embeddings: Any = None,
        slots: Slots | None = None,
        **kwargs: Any,
    ) -> Tensor:
        hidden, groups = hidden_states, self._groups
        if slots is None or not slots.stepping or args:
            more = {"position_embeddings": position_embeddings, "slots": slots, **kwargs}
            return self._own(hidden, *args, **more)
        before, after = self._norms
        x = steps.rms_norm(hidden, before.weight, eps=before.eps, kind=self.dtype)
        whole = groups["attention"].product(x)
        query, key, value = (
            part.unflatten(2, (-1, self._width)).transpose(1, 2)
            for part in whole.split(self._sizes, dim=2)
        )
        slots.update(key, value, self._index)
        x = slots.step(query, key, value, scale=self._scale, angles=position_embeddings)
        added = groups["out"].product(x.flatten(2))
        x = steps.rms_norm(hidden, after.weight, eps=after.eps, kind=self.dtype, added=added)
        return hidden.add_(groups["down"].product(steps.gate(groups["up"].product(x))))


def _fuse(layer: Any, packed: PackedLinears) -> _Fused | None:
    """A forward for a step of `layer`; None where it is built in another way."""
    for path, names in PARTS.items():
        part: Any = getattr(layer, path, None) if path else layer
        if part is None or {name for name, _ in part.named_children()} != names:
            return None
    attention, mlp = layer.self_attn, layer.mlp
    found = {
        "attention": packed.group_of([attention.q_proj, attention.k_proj, attention.v_proj]),
        "out": packed.group_of([attention.o_proj]),
        "up": packed.group_of([mlp.gate_proj, mlp.up_proj]),
        "down": packed.group_of([mlp.down_proj]),
    }
    groups = {name: group for name, group in found.items() if group is not None}
    norms = [_norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)]
    whole = [norm for norm in norms if norm is not None]
    wide = getattr(attention, "head_dim", 0) % (2 * steps.LANES) == 0
    wide = wide and len(mlp.down_proj.weight[0]) % steps.LANES == 0
    if len(groups) < len(found) or len(whole) < len(norms) or not wide:
        return None
    return _Fused(layer, groups, whole)


def _norm(norm: Any) -> _Norm | None:
    eps = getattr(norm, "variance_epsilon", None)
    weight = getattr(norm, "weight", None)
    if eps is None or weight is None or not steps.can_norm(weight):
        return None
    return _Norm(weight, eps)
