"""Key-value slots: memory of what each row has read, and attention over it.

Rows have their own lengths. A prompt is read once and its keys are written to the slots of all its
samples. A finished row's slot is refilled from the last row, so the rows in use are always the
first ones and a step touches no others.

    N rows in use, H query heads, KV key-value heads, D head width, L slot length seen by a step
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import Cache

from rung.engine import steps
from rung.model.types import PreTrainedModel

NAME = "rung_slots"
BLOCK = 32  # lengths are rounded up to it, so that the shapes of a decode are few


class Slots(Cache):
    """A transformers cache of preallocated slots a layer.

    Keys and values are [rows, KV, length, D], in the type that the model computes in.

    Before a model call, make room with `fit` and say what it is: `begin_read` or `begin_step`.
    """

    def __init__(self, *, most_rows: int = 1) -> None:
        super().__init__(layers=[])
        self._most_rows = most_rows
        self.rows = 0
        self.length = 0
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self._reading: _Reading | None = None
        self._positions: Tensor | None = None  # steps: where each row writes
        self._seen = 0
        self._layer = 0  # that wrote last
        self._masks: dict[int, Tensor] = {}

    def fit(self, *, rows: int, length: int) -> None:
        """Make room: slots for `rows`, each for `length` tokens; what they hold stays.

        Room grows by half or more at a time, so what is copied stays a small part of the work.
        """
        if rows > self.rows:
            assert rows <= self._most_rows
            self.rows = min(self._most_rows, max(rows, self.rows + self.rows // 2))
        if length > self.length:
            longer = max(length, self.length + self.length // 2)
            # Odd multiples of BLOCK: slots a power of two apart would share few places of a CPU's
            # cache.
            self.length = (-(-longer // BLOCK) | 1) * BLOCK
        for layer, old in self.keys.items():
            if old.shape[0] < self.rows or old.shape[2] < self.length:
                for table in (self.keys, self.values):
                    table[layer] = _grown(table[layer], rows=self.rows, length=self.length)

    def begin_read(
        self, source: list[int], target: list[int], starts: list[int], *, ends: list[int]
    ) -> None:
        """The next call reads right-padded parts of prompts, batch row b at starts[b] to ends[b].

        Batch row source[i] is written to slot target[i]; several slots may take the same row, all
        with the same contents before its start.

        Padding is written too: it lies beyond the row's end, where the next tokens overwrite it and
        nothing looks before.
        """
        self._reading = _Reading(source, target, starts, ends)
        self._positions = None
        self._masks.clear()

    def begin_step(self, positions: Tensor, *, longest: int) -> None:
        """The next call reads one token of each of the first N rows, at positions int64 [N]."""
        self._positions = positions
        self._seen = min(self.length, -(-(longest + 1) // BLOCK) * BLOCK)
        self._masks.clear()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the keys and values of a read; returns those that its tokens may attend to.

        Of a step, they come back as they are: `step` writes them, and attends.
        """
        if layer_idx not in self.keys:
            self._allocate(key_states, value_states, layer_idx)
        self._layer = layer_idx
        if self._positions is not None:
            return key_states, value_states
        assert self._reading is not None
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        return self._reading.write(keys, values, key_states, value_states)

    def step(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        angles: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Write one key and value of each row and attend to what its slot holds; [N, 1, H, D].

        query [N, H, 1, D]; key, value [N, KV, 1, D], as `update` gave them. angles: cos and sin
        [N, 1, D], where query and key are not turned yet; only where `steps.can_attend`.
        """
        assert self._positions is not None
        keys, values = self.keys[self._layer], self.values[self._layer]
        if keys.shape == values.shape and steps.can_attend(values):
            return steps.attend(
                query,
                key,
                value,
                keys,
                values,
                self._positions,
                scale=scale,
                window=window,
                softcap=softcap,
                angles=angles,
            )
        assert angles is None
        rows = torch.arange(len(self._positions), device=self._positions.device)
        keys[rows, :, self._positions] = key[:, :, 0].to(keys.dtype)
        values[rows, :, self._positions] = value[:, :, 0].to(values.dtype)
        keys, values = (x[: len(rows), :, : self._seen] for x in (keys, values))
        mask = self.mask(query, self._seen, window=window)
        out = _attention(query.to(values.dtype), keys, values, mask, scale=scale, softcap=softcap)
        return out.transpose(1, 2)

    def _allocate(self, key_states: Tensor, value_states: Tensor, layer: int) -> None:
        # zeros, not empty: a masked weight of 0 times an uninitialised nan would be nan
        for table, states in ((self.keys, key_states), (self.values, value_states)):
            _, heads, _, width = states.shape
            shape = (self.rows, heads, self.length, width)
            table[layer] = value_states.new_zeros(shape)

    def copy(
        self, source: list[int], target: list[int], *, length: int, of: "Slots | None" = None
    ) -> None:
        """Copy the first `length` places of slots `source`, of these or others, to `target`."""
        other = self if of is None else of
        for layer, keys in other.keys.items():
            if layer not in self.keys:
                self._allocate(keys, other.values[layer], layer)
            self.keys[layer][target, :, :length] = keys[source, :, :length]
            self.values[layer][target, :, :length] = other.values[layer][source, :, :length]

    @property
    def stepping(self) -> bool:
        """True in a step, False while prompts are read."""
        return self._positions is not None

    def mask(self, query: Tensor, num_keys: int, *, window: int) -> Tensor | None:
        """What queries see, 1 = seen, [N, 1, Q, L]; None where plain causality says it all."""
        reading = None if self.stepping else self._reading
        if reading and reading.from_nothing and (not window or window >= num_keys):
            return None
        if window not in self._masks:
            at = torch.arange(num_keys, device=query.device)
            if reading is None:
                assert self._positions is not None
                last = self._positions[:, None, None]
            else:
                starts = torch.tensor(reading.starts, device=query.device)
                queries = torch.arange(query.shape[2], device=query.device)
                last = (starts[:, None] + queries)[:, :, None]
            seen = at <= last
            if window:
                seen = seen & (at > last - window)
            self._masks[window] = seen[:, None]
        return self._masks[window]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Unknown to transformers: rows differ, and every call gives its positions."""
        return 0


@dataclass(frozen=True)
class _Reading:
    """One call that reads parts of prompts; see `Slots.begin_read`."""

    source: list[int]
    target: list[int]
    starts: list[int]
    ends: list[int]

    @property
    def from_nothing(self) -> bool:
        """Whether every part begins its prompt: then what was read just now is all there is."""
        return not any(self.starts)

    def write(
        self, keys: Tensor, values: Tensor, new_keys: Tensor, new_values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Write; returns keys and values [B, KV, L, D] of all that the parts may attend to."""
        length = new_keys.shape[2]
        from_keys = new_keys[self.source].to(keys.dtype)
        from_values = new_values[self.source].to(values.dtype)
        if self.from_nothing:
            keys[self.target, :, :length] = from_keys
            values[self.target, :, :length] = from_values
            return new_keys, new_values
        if len(self.starts) == 1:
            part = slice(self.starts[0], self.starts[0] + length)
            keys[self.target, :, part] = from_keys
            values[self.target, :, part] = from_values
        else:
            # padding must not run past the slot: there it goes to its last place, used by nothing
            starts = torch.tensor([self.starts[row] for row in self.source])
            at = (starts[:, None] + torch.arange(length)).clamp_(max=keys.shape[2] - 1)
            at, slots = at.to(keys.device), torch.tensor(self.target, device=keys.device)[:, None]
            keys[slots, :, at] = from_keys.transpose(1, 2)
            values[slots, :, at] = from_values.transpose(1, 2)
        first = [self.target[self.source.index(row)] for row in range(len(self.starts))]
        end = max(self.ends)
        rows = slice(first[0], first[0] + 1) if len(first) == 1 else first
        return keys[rows, :, :end], values[rows, :, :end]


def _read_only(rows: int) -> Slots:
    """Slots that only say who sees whom, of texts that are read from their beginning."""
    slots = Slots()
    slots.begin_read(list(range(rows)), list(range(rows)), [0] * rows, ends=[0] * rows)
    return slots


def _grown(old: Tensor, *, rows: int, length: int) -> Tensor:
    held, heads, room, width = old.shape
    new = old.new_zeros((rows, heads, length, width))
    new[:held, :, :room] = old
    return new


class Blocks:
    """Parts of prompts that were read, each of BLOCK tokens: keys and values
    [blocks, KV, BLOCK, D] a layer. Which text they are of: prefix.py."""

    def __init__(self) -> None:
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def save(self, slots: Slots, slot: int, blocks: Sequence[tuple[int, int]]) -> None:
        """Keep blocks of a slot: (number of the block in the slot, place to keep it at)."""
        if not blocks:
            return
        numbers = [number for number, _ in blocks]
        places = [place for _, place in blocks]
        for table, held in ((self._keys, slots.keys), (self._values, slots.values)):
            for layer, states in held.items():
                parts = states[slot].unflatten(1, (-1, BLOCK))[:, numbers]
                _put(table, layer, places, parts.transpose(0, 1))

    def load(self, places: list[int], slots: Slots, slot: int) -> None:
        """Write the blocks at `places` to the beginning of a slot."""
        end = len(places) * BLOCK
        for layer, keys in self._keys.items():
            values = self._values[layer]
            if layer not in slots.keys:
                slots._allocate(keys, values, layer)
            for blocks, states in ((keys, slots.keys), (values, slots.values)):
                states[layer][slot, :, :end] = blocks[places].transpose(0, 1).flatten(1, 2)


def _put(table: dict[int, Tensor], layer: int, places: list[int], parts: Tensor) -> None:
    """parts [n, ...] to table[layer][places]; a table grows with the places that are used."""
    need = max(places) + 1
    old = table.get(layer)
    if old is None or len(old) < need:
        held = 0 if old is None else len(old)
        new = parts.new_zeros((max(need, held + held // 2), *parts.shape[1:]))
        if old is not None:
            new[:held] = old
        table[layer] = new
    table[layer][places] = parts


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    slots: Slots | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface over slots. query [N, H, Q, D], key and value as
    `Slots.update` returned them. Without slots, rows are right-padded texts that are read only.

    Sliding windows, soft caps and scaling are honoured; sinks and position biases are refused.
    """
    for name in ("s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"generation does not know {name!r} of {module}")
    dtype, scale = query.dtype, query.shape[-1] ** -0.5 if scaling is None else scaling
    window, softcap = sliding_window or 0, softcap or 0.0
    if slots is not None and slots.stepping:
        mixed = slots.step(query, key, value, scale=scale, window=window, softcap=softcap)
        return mixed.to(dtype), None
    query, key = query.to(value.dtype), key.to(value.dtype)  # rotary tables may have widened them
    slots = _read_only(len(query)) if slots is None else slots
    mask = slots.mask(query, key.shape[2], window=window)
    out = _attention(query, key, value, mask, scale=scale, softcap=softcap)
    return out.to(dtype).transpose(1, 2), None


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scale: float, softcap: float
) -> Tensor:
    """query [N, H, Q, D], key and value [N, KV, L, D]; [N, H, Q, D]. No mask: plain causality.

    SDPA, unless scores are bent to (-softcap, softcap), which it cannot.
    """
    shared = query.shape[1] // key.shape[1]
    if not softcap:
        return functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=shared > 1,
        )
    key, value = (x.repeat_interleave(shared, dim=1) for x in (key, value))
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * (scale / softcap))
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    weights = torch.softmax(scores.float().masked_fill(~mask, float("-inf")), -1)
    return weights.to(value.dtype) @ value


@contextmanager
def slot_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within it the model attends over slots; afterwards it is as it was."""
    from transformers import AttentionInterface  # seconds: not for every plan that loads a stage

    AttentionInterface.register(NAME, attend)
    before = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before
