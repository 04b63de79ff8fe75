"""What a step does besides matrix products, in C (steps.c): attention, norms, positions, draws.

All of it is for CPUs and without gradients; numbers are float32 or bf16. Each function has one that
says whether it fits.
"""

import ctypes

import torch
from torch import Tensor

from rung.engine.native import library, why_not

LANES = 16  # numbers that steps.c takes at a time
RUN = 256  # tokens whose probabilities are added up together
KINDS = (torch.float32, torch.bfloat16)


class _Record(ctypes.Structure):
    """A structure of steps.c: pointers, then whole numbers, then fractions, then marks."""


def _fields(pointers: str, counts: str, fractions: str, marks: str) -> list[tuple[str, type]]:
    kinds = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int32)
    names = (pointers, counts, fractions, marks)
    return [(name, kind) for kind, line in zip(kinds, names, strict=True) for name in line.split()]


class _Step(_Record):
    _fields_ = _fields(
        "query key value keys values out at cos sin",
        "query_row query_head key_row key_head value_row value_head slot_row slot_head"
        " rows heads kv_heads width window",
        "scale softcap",
        "wide_query wide wide_table",
    )


class _Norm(_Record):
    _fields_ = _fields(
        "input added weight out", "rows width", "eps offset", "wide wide_added wide_weight wide_out"
    )


class _Turn(_Record):
    _fields_ = _fields(
        "input cos sin out",
        "in_row in_head in_token rows heads tokens width same",
        "",
        "wide wide_table wide_out",
    )


class _Gate(_Record):
    _fields_ = _fields("input out", "rows width", "", "wide")


class _Draw(_Record):
    _fields_ = _fields("logits uniforms heats ends chosen", "rows width stride", "", "wide")


def can_attend(values: Tensor) -> bool:
    """Whether `attend` takes slots like these."""
    return _fits(values, values.shape[-1])


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    at: Tensor,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    angles: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Write the new key and value of each row to its slot and attend; [N, 1, H, D].

    query [N, H, 1, D]; key, value [N, KV, 1, D]; keys, values: slots [rows, KV, length, D], of the
    type of `value`; at int64 [N]: where each row writes. It sees what is up to there, within the
    window (0: none). angles: cos and sin [N, 1, D] where query and key are not turned yet (`turn`).
    """
    if key.dtype != query.dtype or query.dtype not in (torch.float32, value.dtype):
        query, key = query.to(value.dtype), key.to(value.dtype)
    query, key, value = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key, value))
    assert keys.stride() == values.stride()
    assert keys.stride(2) == query.shape[3]
    rows, heads, _, width = query.shape
    out = torch.empty((rows, 1, heads, width), dtype=value.dtype)
    record = _Step(
        *(x.data_ptr() for x in (query, key, value, keys, values, out, at)),
        *(None if x is None else x.data_ptr() for x in angles or (None, None)),
        *(*query.stride()[:2], *key.stride()[:2], *value.stride()[:2], *keys.stride()[:2]),
        *(rows, heads, key.shape[1], width, window),
        *(scale, softcap),
        *(query.dtype == torch.float32, value.dtype == torch.float32),
        angles is not None and angles[0].dtype == torch.float32,
    )
    if library().step_attention(ctypes.byref(record), torch.get_num_threads()):
        raise MemoryError("no memory for the attention weights of a step")
    return out


def can_norm(x: Tensor) -> bool:
    """Whether `rms_norm` takes rows like these."""
    return _fits(x, x.shape[-1])


def rms_norm(
    x: Tensor,
    weight: Tensor,
    *,
    eps: float,
    kind: torch.dtype,
    offset: float = 0.0,
    added: Tensor | None = None,
) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * (offset + weight) over the last axis, as `kind`.

    added: like x; it is added to x first, in place.
    """
    assert added is None or (x.is_contiguous() and added.is_contiguous())
    x = x.contiguous()
    out = torch.empty(x.shape, dtype=kind)
    width = x.shape[-1]
    record = _Norm(
        *(x.data_ptr(), None if added is None else added.data_ptr()),
        *(weight.data_ptr(), out.data_ptr(), x.numel() // width, width, eps, offset),
        *(t is not None and t.dtype == torch.float32 for t in (x, added, weight, out)),
    )
    library().rms_norm(ctypes.byref(record), torch.get_num_threads())
    return out


def can_turn(x: Tensor, cos: Tensor) -> bool:
    """Whether `turn` takes x [N, H, T, D] and a table of angles like these."""
    fits = x.dim() == 4 and cos.dim() == 3 and cos.shape[-1] == x.shape[-1]
    return fits and cos.dtype in KINDS and _fits(x, x.shape[-1] // 2)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x * cos + rotated x * sin, [N, H, T, D]: rotary positions by halves (RoFormer, eq. 34, in
    the order of GPT-NeoX). cos, sin [N or 1, T, D]."""
    x = x if x.stride(3) == 1 else x.contiguous()
    cos, sin = cos.contiguous(), sin.contiguous()
    rows, heads, tokens, width = x.shape
    kind = torch.promote_types(x.dtype, cos.dtype)
    out = torch.empty((rows, tokens, heads, width), dtype=kind)
    record = _Turn(
        *(t.data_ptr() for t in (x, cos, sin, out)),
        *(*x.stride()[:3], rows, heads, tokens, width, len(cos) == 1),
        *(t.dtype == torch.float32 for t in (x, cos, out)),
    )
    library().turn(ctypes.byref(record), torch.get_num_threads())
    return out.transpose(1, 2)


def gate(x: Tensor) -> Tensor:
    """silu of the first half of the last axis, times the second half: SwiGLU (Shazeer 2020)."""
    x = x.contiguous()
    width = x.shape[-1] // 2
    out = torch.empty((*x.shape[:-1], width), dtype=x.dtype)
    record = _Gate(
        *(x.data_ptr(), out.data_ptr(), out.numel() // width, width, x.dtype == torch.float32)
    )
    library().gate(ctypes.byref(record), torch.get_num_threads())
    return out


def can_draw(logits: Tensor) -> bool:
    """Whether `draw` takes logits like these."""
    return logits.stride(-1) == 1 and _fits(logits, LANES)


def draw(logits: Tensor, uniforms: Tensor, heats: Tensor) -> Tensor:
    """Tokens by inverse CDF, int64 [B], -1 where logits are nan or infinite.

    logits [B, V]; uniforms float64 [B] in [0, 1); heats: temperatures, float32 [B].
    """
    rows, width = logits.shape
    chosen = torch.empty(rows, dtype=torch.int64)
    ends = torch.empty((rows, -(-width // RUN)), dtype=torch.float64)
    record = _Draw(
        *(x.data_ptr() for x in (logits, uniforms, heats, ends, chosen)),
        *(rows, width, logits.stride(0)),
        logits.dtype == torch.float32,
    )
    library().draw(ctypes.byref(record), torch.get_num_threads())
    return chosen


def _fits(x: Tensor, width: int) -> bool:
    """Whether steps.c can take rows of x `width` numbers at a time on this machine."""
    fits = x.device.type == "cpu" and x.dtype in KINDS and width % LANES == 0 and width > 0
    return fits and not why_not()
