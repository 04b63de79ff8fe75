"""Everything a killed training run needs to go on as if nothing had happened: weights, optimizer.

Tensors go to safetensors, numbers to JSON; nothing is pickled.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def save_state(
    folder: Path,
    modules: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    *,
    extra: dict[str, Any],
) -> None:
    """Write weights, optimizer state and `extra` (JSON) into `folder`."""
    save_file(_unique(modules.state_dict()), folder / "weights.safetensors")
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, optimizer in enumerate(optimizers):
        for parameter, entries in optimizer.state_dict()["state"].items():
            for name, value in entries.items():
                key = f"{index}.{parameter}.{name}"
                if isinstance(value, Tensor):
                    tensors[key] = value.detach().cpu().contiguous()
                else:
                    numbers[key] = value
    save_file(tensors, folder / "optimizer.safetensors")
    text = json.dumps({"optimizer": numbers, "extra": extra}, sort_keys=True)
    (folder / "state.json").write_text(text)


def load_state(
    folder: Path, modules: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> dict[str, Any]:
    """Restore what `save_state` wrote; returns `extra`."""
    weights = load_file(folder / "weights.safetensors")
    missing, unexpected = modules.load_state_dict(weights, strict=False)
    tied = set(modules.state_dict()) - set(_unique(modules.state_dict()))
    assert not unexpected, unexpected
    assert set(missing) <= tied, missing
    saved = json.loads((folder / "state.json").read_text())
    flat: dict[str, Any] = {**load_file(folder / "optimizer.safetensors"), **saved["optimizer"]}
    for index, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Any]] = {}
        for key, value in flat.items():
            which, parameter, name = key.split(".", 2)
            if int(which) == index:
                state.setdefault(int(parameter), {})[name] = value
        full = optimizer.state_dict()
        optimizer.load_state_dict({"state": state, "param_groups": full["param_groups"]})
    return dict(saved["extra"])


def _unique(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Shared tensors (tied embeddings) once, under their first name."""
    seen: set[int] = set()
    unique = {}
    for name, value in state.items():
        if value.data_ptr() not in seen or value.numel() == 0:
            seen.add(value.data_ptr())
            unique[name] = value.detach().cpu().contiguous()
    return unique


def copy_weights(modules: nn.Module) -> dict[str, Tensor]:
    """A detached copy of all weights, for going back to the best ones."""
    return {name: value.detach().clone() for name, value in modules.state_dict().items()}


@torch.no_grad()
def set_weights(modules: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put a `copy_weights` back, in place."""
    for name, value in modules.state_dict().items():
        value.copy_(weights[name])
