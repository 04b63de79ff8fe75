"""A frozen linear layer in 4 bits: NF4 of QLoRA (Dettmers et al. 2023, section 3), by bitsandbytes.

Only quantising and dequantising are the library's; the product is ours, in the compute type. What
the adapter learned on is the dequantised weight, so that is what it is merged onto.
"""

import importlib.util
import logging
from typing import Any

import torch
from torch import Tensor, nn

from rung.errors import ResourceError

BLOCK = 64  # weights that share one scale


class FourBit(nn.Module):
    """The weight of a linear layer (transposed for a Conv1D) as codes and scales."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.codes, self.state = quantise(weight)
        self.bias = bias

    def weight_in(self, dtype: torch.dtype) -> Tensor:
        """The dequantised weight [O, I]."""
        return dequantise(self.codes, self.state).to(dtype)

    @property
    def weight(self) -> Tensor:
        return self.weight_in(torch.float32)


def quantise(weight: Tensor) -> tuple[Tensor, Any]:
    """(codes uint8, scales and shape) of a matrix."""
    matrix = weight.detach().float().contiguous()
    codes, state = _library().quantize_4bit(matrix, blocksize=BLOCK, quant_type="nf4")
    return codes, state


def dequantise(codes: Tensor, state: Any) -> Tensor:
    """float32, of the shape that was quantised."""
    matrix: Tensor = _library().dequantize_4bit(codes, state)
    return matrix


def hush_unused() -> None:
    """Keep back a warning of bitsandbytes that says nothing here. Call it before peft is used: it
    imports that library for any adapter, where it is installed."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_of_use)


def _is_of_use(record: logging.LogRecord) -> bool:
    """Not so: that a product of the library's own is missing, which is not used here."""
    return not str(record.msg).startswith("Failed to load CPU gemm_4bit_forward")


def _library() -> Any:
    hush_unused()
    import bitsandbytes.functional as library

    return library


def round_trip(weight: Tensor) -> Tensor:
    """What is left of a matrix after 4 bits."""
    return dequantise(*quantise(weight)).to(weight.dtype)


def require_four_bit(device: torch.device) -> None:
    """ResourceError where a 4-bit base cannot run: no bitsandbytes, or none for this device."""
    way_out = "leave base_bits out: the base is then kept in bf16 or fp32"
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ResourceError(
            "base_bits: 4 needs bitsandbytes, which is not installed: pip install 'rung[qlora]'; "
            f"or {way_out}"
        )
    try:
        matrix = torch.linspace(-1, 1, 2 * BLOCK, device=device).view(2, BLOCK)
        gap = float((round_trip(matrix) - matrix).abs().max())
    except Exception as error:  # whatever a processor without support raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ResourceError(
            f"base_bits: 4 does not run on this {device.type}: {reason}; {way_out}"
        ) from error
    if not gap < 0.2:  # the widest step of NF4 is 0.3
        raise ResourceError(
            f"base_bits: 4 gives wrong numbers on this {device.type} (gap {gap:.2g} of at most "
            f"0.2); {way_out}"
        )
