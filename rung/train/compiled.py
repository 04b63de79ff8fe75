"""Compiling decoder layers, where it pays for itself within the run."""

from typing import Any

import torch

from rung.model.types import PreTrainedModel
from rung.train.optim import TrainConfig

# A first compiled step costs 15-30 s on two cores and a later one saves about a seventh, so a run
# must be longer than about three minutes; at 0.1 TFLOP/s that is this much work.
MIN_FLOPS = 4e13
TOKEN_BUCKET = 256  # tokens of a batch are padded to a multiple: few shapes, few compilations


def should_compile(config: TrainConfig, *, flops: float, device: torch.device) -> bool:
    """A pure function of config, work and device type, so that a resumed run decides alike."""
    if config.compile != "auto":
        return config.compile == "always"
    return flops >= (MIN_FLOPS if device.type == "cpu" else MIN_FLOPS * 100)


def compile_layers(model: PreTrainedModel) -> None:
    """Compile each decoder layer in place: one small graph that all layers share."""
    decoder: Any = model.base_model
    layers = getattr(decoder, "layers", None) or getattr(decoder, "h", None)
    for layer in layers or ():
        layer.compile(dynamic=False)
