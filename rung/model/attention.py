"""Attention over a forest of segments, for every transformers model with attention backends.

A query sees its own segment causally and all of its ancestors, nothing else. Segments of like
lengths are gathered into padded groups and attended to by plain batched matrix products, which at
training lengths beat the CPU's flash backward (docs/training.md). One opaque operator hides the
gathering, so that a compiled decoder layer has no graph break and no shape that changes.

    H heads, T tokens of the forest, D head width, G rows of a group, L padded length
"""

import functools
import itertools
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rung.tokens.forest import Forest

NAME = "rung_forest"
QUERY_BLOCK = 128  # queries a block; later keys of a causal row are never computed
MAX_SCORES = 1 << 25  # scores a group may hold at once (x heads), bounds the memory of a block


@dataclass(frozen=True)
class Group:
    """Rows of one padded batch. `own` keys come last; `above` (ancestor) keys come first.

    q_index [G * L], k_index [G * (A + L)]: tokens, padding points at token 0.
    hidden [G, 1, A]: 1 = padding among the ancestors, None when a group has no ancestors.
    pad [G, L, 1]: 1 = a padded query, None when a group has none.
    q_pos [G, L], k_pos [G, A + L]: positions, for sliding windows.
    q_real, k_real: flat indices of what is not padding.
    """

    rows: int
    length: int
    above: int
    q_index: Tensor
    k_index: Tensor
    hidden: Tensor | None
    pad: Tensor | None
    q_pos: Tensor
    k_pos: Tensor
    q_real: Tensor
    k_real: Tensor


@dataclass(frozen=True, eq=False)
class Layout:
    """How a forest is attended to. inverse [T]: where each token's query is in the padded rows."""

    groups: tuple[Group, ...]
    num_tokens: int
    inverse: Tensor
    shared_keys: bool  # a token is a key of several rows: its gradients are added up


@dataclass(frozen=True, eq=False)
class TorchForest:
    """A forest on a device; see `Forest` for the fields. `handle` names its layout."""

    ids: Tensor
    positions: Tensor
    predictor: Tensor
    target: Tensor
    weight: Tensor
    target_seg: Tensor
    seg_end: Tensor
    handle: Tensor
    layout: Layout
    host: Forest

    @property
    def num_segments(self) -> int:
        return self.host.num_segments


_layouts: weakref.WeakValueDictionary[int, Layout] = weakref.WeakValueDictionary()
_next_handle = itertools.count()


def to_torch(forest: Forest, device: torch.device | str = "cpu") -> TorchForest:
    """`forest` on `device`, with its attention layout."""
    layout = build_layout(forest, device)
    key = next(_next_handle)
    _layouts[key] = layout

    def put(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device)

    return TorchForest(
        ids=put(forest.ids),
        positions=put(forest.positions),
        predictor=put(forest.predictor),
        target=put(forest.target),
        weight=put(forest.weight),
        target_seg=put(forest.target_seg),
        seg_end=put(forest.seg_end),
        handle=torch.tensor(key),
        layout=layout,
        host=forest,
    )


def build_layout(forest: Forest, device: torch.device | str = "cpu") -> Layout:
    """Groups of segments with like lengths; at most a quarter of a row is padding."""
    own = forest.seg_end - forest.seg_start
    chains = [forest.ancestors(s) for s in range(forest.num_segments)]
    above = np.array([sum(own[a] for a in chain) for chain in chains], dtype=np.int64)
    order = np.lexsort((-own, -above))
    groups: list[Group] = []
    position = np.empty(forest.num_tokens, dtype=np.int64)
    base, at = 0, 0
    while at < len(order):
        rows = _like_rows(order[at:], own, above)
        group = _build_group(forest, rows, chains, own, above, device)
        real = group.q_real.cpu().numpy()
        position[group.q_index.cpu().numpy()[real]] = real + base
        groups.append(group)
        base += group.rows * group.length
        at += len(rows)
    return Layout(
        tuple(groups),
        forest.num_tokens,
        torch.from_numpy(position).to(device),
        shared_keys=bool((above > 0).any()),
    )


def _like_rows(order: np.ndarray, own: np.ndarray, above: np.ndarray) -> np.ndarray:
    """The head of `order` (sorted by falling lengths) that one padded group can hold."""
    length, depth = int(own[order[0]]), int(above[order[0]])
    count = 0
    for segment in order:
        length = max(length, int(own[segment]))
        short = own[segment] < 0.75 * length - 16 or above[segment] < 0.75 * depth - 16
        full = (count + 1) * length * (length + depth) > MAX_SCORES
        if count and (short or full or (depth > 0) != (above[segment] > 0)):
            break
        count += 1
    rows = order[:count]
    # a later, longer row may have made the first ones too short: keep what still fits
    fits = own[rows] >= 0.5 * own[rows].max() - 32
    return rows if fits.all() else rows[: max(1, int(np.argmin(fits)))]


def _build_group(
    forest: Forest,
    rows: np.ndarray,
    chains: list[list[int]],
    own: np.ndarray,
    above: np.ndarray,
    device: torch.device | str,
) -> Group:
    length, depth = int(own[rows].max()), int(above[rows].max())
    column = np.arange(length)
    real_q = column[None] < own[rows][:, None]
    q_index = np.where(real_q, forest.seg_start[rows][:, None] + column[None], 0)
    up_index = np.zeros((len(rows), depth), dtype=np.int64)
    for row, segment in enumerate(rows):
        spans = [
            np.arange(int(forest.seg_start[a]), int(forest.seg_end[a])) for a in chains[segment]
        ]
        if spans:
            up_index[row, : above[segment]] = np.concatenate(spans)
    real_up = np.arange(depth)[None] < above[rows][:, None]
    k_index = np.concatenate([up_index, q_index], axis=1)
    real_k = np.concatenate([real_up, real_q], axis=1)

    def put(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device)

    return Group(
        rows=len(rows),
        length=length,
        above=depth,
        q_index=put(q_index.reshape(-1)),
        k_index=put(k_index.reshape(-1)),
        hidden=put(~real_up[:, None]) if depth and not real_up.all() else None,
        pad=None if real_q.all() else put(~real_q[..., None]),
        q_pos=put(forest.positions[q_index]),
        k_pos=put(forest.positions[k_index]),
        q_real=put(np.flatnonzero(real_q.reshape(-1))),
        k_real=put(np.flatnonzero(real_k.reshape(-1))),
    )


@dataclass(frozen=True)
class _Weights:
    """What turns a query block and its keys into attention weights."""

    window: int  # 0: none
    softcap: float  # 0: none

    def block(self, group: Group, q: Tensor, k: Tensor, first: int) -> tuple[Tensor, Tensor | None]:
        """(weights, slope of the softcap or None) of queries first..first+B on the keys they see.

        Both [KV * G, R * B, K], rows of weights sum to 1. q [KV * G, R * B, D] is scaled (R query
        heads share a key head), k [KV * G, K, D].
        """
        scores, slope = torch.bmm(q, k.transpose(1, 2)), None
        if self.softcap:
            bent = scores.div_(self.softcap).tanh_()
            slope = 1 - bent.square()
            scores = bent.mul_(self.softcap)
        keys, own = k.shape[1], k.shape[1] - group.above
        block = own - first
        view = scores.view(-1, group.rows, scores.shape[1] // block, block, keys)
        view[..., keys - block :].masked_fill_(_future(block, q.device), float("-inf"))
        if group.hidden is not None:
            hidden = group.hidden[None, :, :, None]
            view[..., : group.above].masked_fill_(hidden, float("-inf"))
        if self.window:
            distance = group.q_pos[:, first:own, None] - group.k_pos[:, None, :keys]
            view.masked_fill_((distance >= self.window)[None, :, None], float("-inf"))
        return torch.softmax(scores, -1), slope


@functools.lru_cache(maxsize=2 * QUERY_BLOCK)
def _future(block: int, device: torch.device) -> Tensor:
    """1 = a key after the query, [B, B]."""
    return torch.ones(block, block, dtype=torch.bool, device=device).triu_(1)


def _gather(x: Tensor, index: Tensor, rows: int) -> Tensor:
    """[H, T, D] -> [H, G, L, D]"""
    return x.index_select(1, index).view(x.shape[0], rows, -1, x.shape[2])


def _blocks(group: Group) -> list[tuple[int, int]]:
    return [
        (first, min(first + QUERY_BLOCK, group.length))
        for first in range(0, group.length, QUERY_BLOCK)
    ]


def _fold(q: Tensor, kv_heads: int) -> Tensor:
    """[H, G, B, D] -> [KV * G, R * B, D], so that grouped query heads share one product."""
    heads, rows, block, width = q.shape
    q = q.view(kv_heads, heads // kv_heads, rows, block, width).transpose(1, 2)
    return q.reshape(kv_heads * rows, heads // kv_heads * block, width)


def _unfold(x: Tensor, kv_heads: int, rows: int, block: int) -> Tensor:
    """Inverse of `_fold`: [KV * G, R * B, D] -> [H, G, B, D]"""
    x = x.view(kv_heads, rows, -1, block, x.shape[-1]).transpose(1, 2)
    return x.reshape(-1, rows, block, x.shape[-1])


@torch.library.custom_op("rung::forest_attention", mutates_args=())
def _forest_attention(
    q: Tensor, k: Tensor, v: Tensor, handle: Tensor, window: int, softcap: float
) -> Tensor:
    """q [H, T, D], scaled; k and v [KV, T, D] -> output [T, H, D]."""
    layout = _layouts[int(handle)]
    form, kv = _Weights(window, softcap), k.shape[0]
    outputs = []
    for group in layout.groups:
        gq = _gather(q, group.q_index, group.rows)
        gk, gv = (_gather(x, group.k_index, group.rows).flatten(0, 1) for x in (k, v))
        out = gq.new_empty((*gq.shape[:3], v.shape[2]))
        for first, last in _blocks(group):
            seen = group.above + last
            p, _ = form.block(group, _fold(gq[:, :, first:last], kv), gk[:, :seen], first)
            mixed = torch.bmm(p, gv[:, :seen])
            out[:, :, first:last] = _unfold(mixed, kv, group.rows, last - first)
        outputs.append(out.flatten(1, 2))
    return torch.cat(outputs, 1).transpose(0, 1).index_select(0, layout.inverse)


@_forest_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, handle: Tensor, window: int, softcap: float) -> Tensor:
    heads, tokens, _ = q.shape
    return q.new_empty((tokens, heads, v.shape[2]))


@torch.library.custom_op("rung::forest_attention_backward", mutates_args=())
def _forest_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, handle: Tensor, window: int, softcap: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the scaled q, of k and v. Weights are computed again: keeping them would cost
    memory with the square of the length."""
    layout = _layouts[int(handle)]
    form, kv = _Weights(window, softcap), k.shape[0]
    grad = grad.transpose(0, 1)
    dqs, dks, dvs = [], [], []
    for group in layout.groups:
        gq, go = (_gather(x, group.q_index, group.rows) for x in (q, grad))
        gk, gv = (_gather(x, group.k_index, group.rows).flatten(0, 1) for x in (k, v))
        if group.pad is not None:  # a padded query would send a gradient to the keys of its row
            go = go.masked_fill_(group.pad, 0)
        dq, dk, dv = torch.empty_like(gq), torch.zeros_like(gk), torch.zeros_like(gv)
        for first, last in _blocks(group):
            seen = group.above + last
            fq, fo = (_fold(x[:, :, first:last], kv) for x in (gq, go))
            p, slope = form.block(group, fq, gk[:, :seen], first)
            dv[:, :seen] += torch.bmm(p.transpose(1, 2), fo)
            dp = torch.bmm(fo, gv[:, :seen].transpose(1, 2))
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
            if slope is not None:
                ds = ds.mul_(slope)
            dq[:, :, first:last] = _unfold(
                torch.bmm(ds, gk[:, :seen]), kv, group.rows, last - first
            )
            dk[:, :seen] += torch.bmm(ds.transpose(1, 2), fq)
        dqs.append(dq.flatten(1, 2))
        dks.append(dk.view(kv, -1, dk.shape[-1]))
        dvs.append(dv.view(kv, -1, dv.shape[-1]))
    dq = torch.cat(dqs, 1).index_select(1, layout.inverse)
    return dq, _scatter(dks, layout), _scatter(dvs, layout)


def _scatter(parts: list[Tensor], layout: Layout) -> Tensor:
    """Padded key gradients of all groups -> [KV, T, D]."""
    if not layout.shared_keys:
        return torch.cat(parts, 1).index_select(1, layout.inverse)
    kv, _, width = parts[0].shape
    total = torch.zeros(kv, layout.num_tokens, width, dtype=torch.float32, device=parts[0].device)
    for group, part in zip(layout.groups, parts, strict=True):
        total.index_add_(1, group.k_index[group.k_real], part.index_select(1, group.k_real).float())
    return total.to(parts[0].dtype)


@_forest_attention_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, handle: Tensor, window: int, softcap: float
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    q, k, v, handle, ctx.window, ctx.softcap = inputs
    ctx.save_for_backward(q, k, v, handle)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, handle = ctx.saved_tensors
    grads = torch.ops.rung.forest_attention_backward(
        grad.contiguous(), q, k, v, handle, ctx.window, ctx.softcap
    )
    return (*grads, None, None, None)


_forest_attention.register_autograd(_backward, setup_context=_setup)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    forest: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface. query [1, H, T, D], key and value [1, KV, T, D].

    The mask is ignored: who sees whom is the forest's.
    """
    if forest is None:  # transformers makes no mask for a backend of ours: padding would leak
        raise RuntimeError(
            "this model attends to forests; for plain calls first use "
            "model.set_attn_implementation('sdpa')"
        )
    assert query.shape[0] == 1, "a forest is one flat row"
    if dropout:
        raise NotImplementedError(
            f"forest attention has no dropout, {type(module).__name__} asks for {dropout}; "
            "set the attention dropout in the model's config.json to 0"
        )
    for name in ("s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"forest attention does not know {name!r} of {module}")
    dtype = value.dtype  # rotary tables may have widened query and key
    # The scale goes to the queries: one product over T x D numbers instead of two over all scores.
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    out = torch.ops.rung.forest_attention(
        (query[0] * scale).to(dtype),
        key[0].to(dtype),
        value[0],
        forest,
        sliding_window or 0,
        softcap or 0.0,
    )
    return out[None], None


def register() -> str:
    """Register with transformers; returns the name to give as attn_implementation."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    return NAME
