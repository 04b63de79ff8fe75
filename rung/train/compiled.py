"""Compiling decoder layers, where it pays for itself within the run."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from rung.errors import ConfigError, ResourceError
from rung.model.types import PreTrainedModel
from rung.train.optim import TrainConfig

# A first compiled step costs 10-20 s on two cores and a later one saves a seventh to a quarter, so
# a run must be longer than about two minutes; at 0.1 TFLOP/s that is this much work.
MIN_FLOPS = 2e13
TOKEN_BUCKET = 256  # tokens of a batch are padded to a multiple: few shapes, few compilations


def should_compile(
    config: TrainConfig, *, flops: float, device: torch.device, say: Callable[[str], None]
) -> bool:
    """Whether to compile; "auto" asks if the run is long enough and a compiler works here.

    The same for every run of a config on a machine, so that a resumed run decides alike.
    ResourceError for "always" where nothing can be compiled.
    """
    if config.compile == "never":
        return False
    if config.adapter != "none":
        if config.compile == "always":
            raise ConfigError("compile: always: layers with an adapter are not compiled; set auto")
        return False
    if config.compile == "auto":
        if flops < (MIN_FLOPS if device.type == "cpu" else MIN_FLOPS * 100):
            return False
        if reason := why_not(device):
            say(f"layers are not compiled, which costs about a fifth of the speed: {reason}")
        return not reason
    if reason := why_not(device):
        raise ResourceError(
            f"compile: always, but nothing can be compiled here: {reason}; install a C++ compiler "
            "and the headers of this Python (Debian: g++ and python3-dev), or set compile: never"
        )
    return True


@functools.cache
def why_not(device: torch.device) -> str:
    """Why torch cannot compile on this machine, "" where it can: it tries."""
    try:
        torch.compile(lambda x: x * 2 + 1, dynamic=False)(torch.zeros(8, device=device))
    except Exception as error:  # whatever it is, training can go on without
        return str(error).strip().splitlines()[0]
    return ""


def compile_layers(model: PreTrainedModel) -> None:
    """Compile each decoder layer in place: one small graph that all layers share."""
    decoder: Any = model.base_model
    layers = getattr(decoder, "layers", None) or getattr(decoder, "h", None)
    for layer in layers or ():
        layer.compile(dynamic=False)
