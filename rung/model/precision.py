"""The one place that picks bf16 or fp32, from what the processor says of itself."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from rung.errors import ResourceError

Precision = Literal["auto", "bf16", "fp32"]


def has_bf16(device: torch.device | str = "cpu") -> bool:
    """True where bf16 matrix products run in hardware; emulated bf16 is slower than fp32."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.device(device).type != "cpu":
        return False
    flags = torch.cpu.get_capabilities()
    return any(bool(flags.get(name)) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def pick_dtype(precision: Precision, device: torch.device | str = "cpu") -> torch.dtype:
    """The compute type; ResourceError when bf16 is asked for where it does not run."""
    if precision == "fp32":
        return torch.float32
    if has_bf16(device):
        return torch.bfloat16
    if precision == "bf16":
        raise ResourceError(
            f"precision bf16: this {device} has no bf16 products; use precision: auto or fp32"
        )
    return torch.float32


def autocast(
    dtype: torch.dtype, device: torch.device | str = "cpu"
) -> AbstractContextManager[None]:
    """Products in `dtype`, weights and sums in fp32; does nothing for fp32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=dtype)


def pick_device(name: str = "auto") -> torch.device:
    """`auto` takes CUDA when there is one; a device that is not there is a ResourceError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ResourceError(f"device {name}: no CUDA device here; use device: auto or cpu")
    return torch.device(name)
