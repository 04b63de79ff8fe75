"""The lower part of a decoder: what is to be read needs no layers that choose the next word."""

from torch import nn

from rung.errors import ConfigError
from rung.model.types import PreTrainedModel


def count_layers(model: PreTrainedModel) -> int:
    """Decoder layers as the model's config says."""
    return int(model.config.num_hidden_layers)


def take_upper(model: PreTrainedModel, layers: int) -> list[nn.Module]:
    """Remove all but the first `layers` decoder layers from `model`, in place, and return them.

    The final norm follows the last one that stays.
    """
    stack = _stack(model)
    upper = list(stack[layers:])
    del stack[layers:]
    return upper


def put_upper(model: PreTrainedModel, upper: list[nn.Module]) -> None:
    """Put back what `take_upper` removed."""
    _stack(model).extend(upper)


def _stack(model: PreTrainedModel) -> nn.ModuleList:
    wanted = count_layers(model)
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    whole = [m for m in lists if 0 < len(m) <= wanted and _is_layer(m[0])]
    if len(whole) != 1:
        raise ConfigError(
            f"{type(model).__name__} has no single list of decoder layers to read a part of; "
            "set depth: 1"
        )
    return whole[0]


def _is_layer(module: nn.Module) -> bool:
    return any("attn" in name or "attention" in name for name, _ in module.named_children())
