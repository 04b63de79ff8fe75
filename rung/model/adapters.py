"""Adapters: a frozen base with small trained matrices beside its linear layers (LoRA and kin).

An adapter goes into a model in place, so what was a LlamaForCausalLM still is one: forests, heads
and generation know nothing of it. The base under it is never trained, hence the reference of a
policy is the same weights with the adapter off (`adapter_off`).

On disk an adapter is peft's: adapter_config.json, whose base_model_name_or_path is the id of the
base artefact, and adapter_model.safetensors. The base lies beside it in the store.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rung.config import did_you_mean
from rung.errors import ArtefactError, ConfigError
from rung.model.adapter_config import AdapterConfig
from rung.model.fourbit import FourBit, hush_unused
from rung.model.load import save_model
from rung.model.types import PreTrainedModel
from rung.store.adapter import CONFIG_FILE, QUANTISED_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    from rung.model.lora import LoraLinear

TRAINED = "default"  # peft's name for the adapter that is trained
_PREFIX = "base_model.model."  # of names in a file: peft's model around the model


def add_adapter(
    model: PreTrainedModel, config: AdapterConfig, *, dtype: torch.dtype, seed: int = 0
) -> None:
    """Freeze `model` and put a new adapter into it, in place; without one asked, do nothing.

    The new adapter changes nothing yet (B is 0). dtype: of the matrix products; the frozen weights
    beside the adapter are kept in it, as autocast would round them to it in every product.
    """
    if config.adapter == "none":
        return
    hush_unused()
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    model.requires_grad_(False)
    targets = find_targets(model, config.lora_targets)
    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        use_rslora=config.adapter == "rslora",
        use_dora=config.adapter == "dora",
        target_modules=targets,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _inject(model, lora, name=TRAINED)
    _shrink_base(model, dtype, bits=config.base_bits)
    for layer in adapted_layers(model):
        if (
            TRAINED in layer.lora_magnitude_vector
        ):  # the norm as the forward takes it: a factor of 1
            layer.lora_magnitude_vector[TRAINED].weight.data = layer.row_norms(TRAINED)


def attach_adapter(
    model: PreTrainedModel, folder: Path, *, name: str, dtype: torch.dtype, bits: int | None
) -> None:
    """Put the saved adapter of `folder` into `model`, its base, frozen and under `name`."""
    hush_unused()
    from peft import LoraConfig, set_peft_model_state_dict

    lora = LoraConfig.from_pretrained(str(folder))
    _inject(model, lora, name=name)
    result = set_peft_model_state_dict(model, read_weights(folder), adapter_name=name)
    assert not result.unexpected_keys, result.unexpected_keys[:3]
    _shrink_base(model, dtype, bits=bits)
    model.requires_grad_(False)


def detach_adapter(model: PreTrainedModel, name: str) -> None:
    """Take the adapter `name` out of `model` and let its memory go; nothing where it is not."""
    for layer in adapted_layers(model):
        layer._active_adapter = []  # ours says who is on; peft would warn and turn on another
        layer.delete_adapter(name)
        layer.using = None if layer.using == name else layer.using
        layer.routes = None
    getattr(model, "peft_config", {}).pop(name, None)


def _inject(model: PreTrainedModel, lora: Any, *, name: str) -> None:
    from peft import inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D

    from rung.model.lora import LoraLinear

    lora._register_custom_module({nn.Linear: LoraLinear, Conv1D: LoraLinear})
    known = model.__dict__.pop("peft_config", {})  # peft warns of a second adapter; it is meant
    on = {id(layer): layer.using for layer in adapted_layers(model)}
    inject_adapter_in_model(lora, model, adapter_name=name)
    injected: Any = model
    injected.peft_config = {**known, **injected.peft_config}
    for layer in adapted_layers(model):
        layer.using = name if name == TRAINED else on.get(id(layer))
        for other in layer.lora_A:
            for part in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector):
                if other in part:
                    part[other].requires_grad_(other == TRAINED)


def find_targets(model: PreTrainedModel, names: Sequence[str] | None) -> list[str]:
    """Last names of the linear layers to adapt, sorted; None: of all but the output head.

    ConfigError for a name that no linear layer has.
    """
    from transformers.pytorch_utils import Conv1D

    from rung.model.lora import LoraLinear

    head = model.get_output_embeddings()
    found = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D | LoraLinear)
        and module is not head
        and not {"lora_A", "lora_B", "base_layer"} & set(name.split("."))
    }
    if not found:
        raise ConfigError(f"{type(model).__name__} has no linear layers to adapt")
    for name in names or ():
        if name not in found:
            hint = did_you_mean(name, sorted(found))
            raise ConfigError(
                f"lora_targets: {name!r} is no linear layer that can be adapted{hint}"
            )
    return sorted(names or found)


def _shrink_base(model: PreTrainedModel, dtype: torch.dtype, *, bits: int | None) -> None:
    """Keep the weights under adapters in `dtype`, or in 4 bits; embeddings, norms and the head
    stay in float32, for the sake of the sums that go through them."""
    from transformers.pytorch_utils import Conv1D

    for layer in adapted_layers(model):
        base = layer.base_layer
        if isinstance(base, FourBit):
            continue
        if bits == 4:
            weight = base.weight.T if isinstance(base, Conv1D) else base.weight
            layer.base_layer = FourBit(weight, base.bias)
        elif base.weight.dtype != dtype:
            base.weight.data = base.weight.data.to(dtype)


def adapted_layers(model: nn.Module) -> list["LoraLinear"]:
    """The layers with adapters, in order; none in a plain model."""
    return [module for module in model.modules() if hasattr(module, "lora_A")]  # type: ignore[misc]


def is_adapted(model: nn.Module) -> bool:
    """Whether `add_adapter` has been here: what is trained is then a part of the model."""
    return TRAINED in getattr(model, "peft_config", {})


def trained_part(model: PreTrainedModel) -> nn.Module:
    """What an optimizer, a clip and a checkpoint need to know: the adapter, else the model."""
    if not is_adapted(model):
        return model
    return nn.ModuleDict(
        {
            name.replace(".", "/"): module
            for name, module in model.named_modules()
            if any(p.requires_grad for p in module.parameters(recurse=False))
        }
    )


def drop_inputs(model: nn.Module, on: bool) -> None:
    """Let the adapters' dropout act, or not; the layers of the base stay as they are."""
    for layer in adapted_layers(model):
        layer.train(on)


@contextmanager
def using(model: PreTrainedModel, name: str | None) -> Iterator[PreTrainedModel]:
    """`model` with the adapter `name` on and the others off; None: all of them off."""
    layers = adapted_layers(model)
    assert layers, "a model without an adapter has none to switch"
    before = [layer.using for layer in layers]
    for layer in layers:
        layer.using = name
    try:
        yield model
    finally:
        for layer, one in zip(layers, before, strict=True):
            layer.using = one


def route(model: PreTrainedModel, names: Sequence[str | None]) -> None:
    """In the next calls of the model, row i of the batch speaks with the adapter names[i].

    Without a single name, what `using` says goes for all rows; beside others, a row without a name
    speaks with no adapter.
    """
    present = tuple(getattr(model, "peft_config", ()))
    assert present or not any(names), "the model has no adapters"
    if not present:
        return
    # a walk over all modules takes as long as a step of a small model: once for each set of them
    known = model.__dict__.get("_routed")
    if known is None or known[0] != present:
        known = model.__dict__["_routed"] = (present, adapted_layers(model))
    groups: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        if name is not None:
            groups.setdefault(name, []).append(row)
    routes = [(name, torch.tensor(rows)) for name, rows in groups.items()] or None
    for layer in known[1]:
        layer.routes = routes


def adapter_off(model: PreTrainedModel) -> Any:
    """The model that the adapter was put into: the reference of a policy. A context manager."""
    return using(model, None)


def save_trained(model: PreTrainedModel, folder: Path, *, base: str) -> None:
    """The whole model, or the adapter alone where there is one; equal ones have equal bytes.

    base: id of the artefact that the model was loaded from.
    """
    if not is_adapted(model):
        save_model(model, folder)
        return
    from peft import get_peft_model_state_dict

    lora: Any = model.peft_config[TRAINED]
    state = get_peft_model_state_dict(
        model, state_dict=_state(model), adapter_name=TRAINED, save_embedding_layers=False
    )
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        _PREFIX + name: value.detach().float().cpu().contiguous()
        for name, value in sorted(state.items())
    }
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    record = {
        **lora.to_dict(),
        "target_modules": sorted(lora.target_modules),
        "base_model_name_or_path": base,
        "inference_mode": True,
    }
    _write_json(folder / CONFIG_FILE, record)
    if any(isinstance(layer.base_layer, FourBit) for layer in adapted_layers(model)):
        _write_json(folder / QUANTISED_FILE, {"bits": 4, "format": "nf4"})


def _state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Parameters of adapters alone: a state dict of the whole would touch the frozen base."""
    return {name: value for name, value in model.named_parameters() if ".lora_" in name}


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


def saved_bits(folder: Path) -> int | None:
    """Bits of the base that the adapter of `folder` was trained on; None: not quantised."""
    path = folder / QUANTISED_FILE
    return int(json.loads(path.read_text())["bits"]) if path.is_file() else None


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The adapter's tensors, by the names they have inside the model."""
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise ArtefactError(f"{folder} has no {WEIGHTS_FILE}: weights are read as safetensors only")
    return {name.removeprefix(_PREFIX): value for name, value in load_file(path).items()}
