"""Key-value slots: memory of what each row has read, and attention over it.

Rows have their own lengths. A prompt is read once and its keys are written to the slots of all its
samples. A finished row's slot is refilled from the last row, so the rows in use are always the
first ones and a step touches no others.

    N rows in use, H query heads, KV key-value heads, D head width, L slot length seen by a step
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import Cache

from rung.model.types import PreTrainedModel

NAME = "rung_slots"
BLOCK = 32  # lengths are rounded up to it, so that the shapes of a decode are few


class Slots(Cache):
    """A transformers cache of preallocated slots a layer.

    Keys are [rows, KV, length, D], values [rows, KV, D, length]: either product of a step then
    reads its matrix along memory, which on a CPU is half the time of SDPA with one query. On a CPU
    they are float32 whatever the model computes in, since a step in bf16 is no faster there, and
    a slot takes memory only as far as it was written to.

    Before a model call, say what it is: `begin_read` or `begin_step`.
    """

    def __init__(self, *, rows: int, length: int, blocks: int = 0) -> None:
        super().__init__(layers=[])
        self.rows = rows
        self.length = -(-length // BLOCK) * BLOCK
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        # blocks of prompts: keys [blocks, KV, BLOCK, D], values [blocks, KV, D, BLOCK]
        self._num_blocks = blocks
        self._block_keys: dict[int, Tensor] = {}
        self._block_values: dict[int, Tensor] = {}
        self._reading: _Reading | None = None
        self._positions: Tensor | None = None  # steps: where each row writes
        self._arange = torch.arange(0)
        self._seen = 0
        self._masks: dict[int, Tensor] = {}

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
        self._arange = torch.arange(len(positions), device=positions.device)
        self._seen = min(self.length, -(-(longest + 1) // BLOCK) * BLOCK)
        self._masks.clear()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new keys and values; returns those that the new tokens may attend to.

        Of a step, the values come transposed, as they are stored.
        """
        if layer_idx not in self.keys:
            self._allocate(key_states, value_states, layer_idx)
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        if self._positions is None:
            assert self._reading is not None
            return self._reading.write(keys, values, key_states, value_states)
        keys[self._arange, :, self._positions] = key_states[:, :, 0].to(keys.dtype)
        values[self._arange, :, :, self._positions] = value_states[:, :, 0].to(values.dtype)
        num_rows = len(self._positions)
        return keys[:num_rows, :, : self._seen], values[:num_rows, :, :, : self._seen]

    def _allocate(self, key_states: Tensor, value_states: Tensor, layer: int) -> None:
        device = value_states.device
        dtype = torch.float32 if device.type == "cpu" else value_states.dtype
        _, heads, _, width = key_states.shape
        inner = value_states.shape[3]
        new = partial(_zeros, dtype=dtype, device=device)
        # Slots a power of two apart would share few places of a CPU's cache: hence a block more.
        self.keys[layer] = new(self.rows, heads, self.length + BLOCK, width)
        self.values[layer] = new(self.rows, heads, inner, self.length + BLOCK)
        if self._num_blocks:
            self._block_keys[layer] = new(self._num_blocks, heads, BLOCK, width)
            self._block_values[layer] = new(self._num_blocks, heads, inner, BLOCK)

    def copy(self, source: list[int], target: list[int], *, length: int) -> None:
        """Copy the first `length` places of slots `source` to slots `target`."""
        for keys in self.keys.values():
            keys[target, :, :length] = keys[source, :, :length]
        for values in self.values.values():
            values[target, :, :, :length] = values[source, :, :, :length]

    def load_blocks(self, places: list[int], slot: int) -> None:
        """Write the blocks at `places` to the beginning of a slot."""
        end = len(places) * BLOCK
        for layer, blocks in self._block_keys.items():
            self.keys[layer][slot, :, :end] = blocks[places].transpose(0, 1).flatten(1, 2)
        for layer, blocks in self._block_values.items():
            self.values[layer][slot, :, :, :end] = blocks[places].permute(1, 2, 0, 3).flatten(2)

    def save_blocks(self, slot: int, blocks: list[tuple[int, int]]) -> None:
        """Keep blocks of a slot: (number of the block in the slot, place to keep it at)."""
        for layer, keys in self.keys.items():
            values = self.values[layer]
            for number, place in blocks:
                part = slice(number * BLOCK, (number + 1) * BLOCK)
                self._block_keys[layer][place] = keys[slot, :, part]
                self._block_values[layer][place] = values[slot, :, :, part]

    def bytes_per_token(self) -> int:
        """Memory of one place of one slot over all layers; 0 before the first call."""
        whole = sum(
            t.numel() * t.element_size() for t in (*self.keys.values(), *self.values.values())
        )
        return whole // (self.rows * (self.length + BLOCK))

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
            values[self.target, :, :, :length] = from_values.transpose(2, 3)
            return new_keys, new_values
        if len(self.starts) == 1:
            part = slice(self.starts[0], self.starts[0] + length)
            keys[self.target, :, part] = from_keys
            values[self.target, :, :, part] = from_values.transpose(2, 3)
        else:
            # padding must not run past the slot: there it goes to its last place, used by nothing
            starts = torch.tensor([self.starts[row] for row in self.source])
            at = (starts[:, None] + torch.arange(length)).clamp_(max=keys.shape[2] - 1)
            at, slots = at.to(keys.device), torch.tensor(self.target, device=keys.device)[:, None]
            keys[slots, :, at] = from_keys.transpose(1, 2)
            values[slots, :, :, at] = from_values.transpose(1, 2)
        first = [self.target[self.source.index(row)] for row in range(len(self.starts))]
        end = max(self.ends)
        rows = slice(first[0], first[0] + 1) if len(first) == 1 else first
        return keys[rows, :, :end], values[rows, :, :, :end].transpose(2, 3).contiguous()


def _read_only(rows: int) -> Slots:
    """Slots that only say who sees whom, of texts that are read from their beginning."""
    slots = Slots(rows=rows, length=0)
    slots.begin_read(list(range(rows)), list(range(rows)), [0] * rows, ends=[0] * rows)
    return slots


def _zeros(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, not empty: a masked weight of 0 times an uninitialised nan would be nan. On a CPU the
    system hands out zeroed pages when they are first written to."""
    if device.type == "cpu" and dtype == torch.float32:
        return torch.from_numpy(np.zeros(shape, dtype=np.float32))
    return torch.zeros(shape, dtype=dtype, device=device)


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
    query, key = query.to(value.dtype), key.to(value.dtype)  # rotary tables may have widened them
    slots = _read_only(len(query)) if slots is None else slots
    mask = slots.mask(query, key.shape[2], window=sliding_window or 0)
    if slots.stepping:
        with torch.autocast(query.device.type, enabled=False):
            out = _step(query, key, value, mask, scale=scale, softcap=softcap or 0.0)
    elif softcap:
        out = _prompt(query, key, value, mask, scale=scale, softcap=softcap)
    else:
        out = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    return out.to(dtype).transpose(1, 2), None


def _step(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scale: float, softcap: float
) -> Tensor:
    """One query a row. query [N, H, 1, D], key [N, KV, L, D], value [N, KV, D, L]; [N, H, 1, D].

    Heads that share keys become columns of one product; slots of rows and heads are one batch.
    """
    num_rows, heads, _, width = query.shape
    num_keys, shared = key.shape[2], heads // key.shape[1]
    columns = query.reshape(-1, shared, width).transpose(1, 2)
    scores = torch.bmm(key.flatten(0, 1), columns).transpose(1, 2).mul_(scale)
    if softcap:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    assert mask is not None
    scores = scores.reshape(num_rows, heads, num_keys).masked_fill_(~mask[:, 0], float("-inf"))
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(value.dtype)
    # The flat view sets the strides: with other ones the product of a single column is 4x slower.
    weights = weights.view(-1, num_keys).view(-1, shared, num_keys)
    mixed = torch.bmm(value.flatten(0, 1), weights.transpose(1, 2))
    return mixed.transpose(1, 2).reshape(num_rows, heads, 1, -1)


def _prompt(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scale: float, softcap: float
) -> Tensor:
    """Whole prompts with scores bent to (-softcap, softcap), which SDPA cannot; [N, H, Q, D]."""
    shared = query.shape[1] // key.shape[1]
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
