"""Model folders: any transformers causal LM, weights as safetensors only, bytes that repeat."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from rung.errors import ArtefactError, first_line
from rung.model.attention import register
from rung.model.types import PreTrainedModel
from rung.store.adapter import layers_below

# what transformers and safetensors raise on a folder that is broken or of no known kind
_LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load_model(
    folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> PreTrainedModel:
    """The model of a local folder, in evaluation mode, ready for forests.

    Of an adapter: its base, which lies beside it, with the adapter merged in float32. Nothing is
    fetched and no code of the folder runs. ArtefactError: no config or weights, weights that are
    only there as pickle, remote code, weights that do not match the config, a base that is gone.
    """
    *adapters, whole = layers_below(folder)
    if not adapters:
        return _load_whole(whole, dtype, device)
    from rung.model.merge import merge_adapter  # peft: only where there is an adapter

    model = _load_whole(whole, torch.float32, device)
    for adapter in reversed(adapters):
        model = merge_adapter(model, adapter)
    return model.to(dtype)


def read_config(folder: Path) -> Any:
    """The transformers config of a model folder, without its weights; errors as `load_model`."""
    _refuse_unsafe(folder, _read_config(folder))
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except _LOAD_ERRORS as error:
        raise ArtefactError(
            f"{folder}: transformers cannot read config.json: {first_line(error)}"
        ) from error


def _load_whole(folder: Path, dtype: torch.dtype, device: torch.device | str) -> PreTrainedModel:
    config = _read_config(folder)
    _refuse_unsafe(folder, config)
    from transformers import AutoModelForCausalLM  # seconds: only where a model is loaded

    transformers_logging.disable_progress_bar()  # a stage shows its own
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation=register(),
            output_loading_info=True,
        )
    except _LOAD_ERRORS as error:
        raise ArtefactError(
            f"{folder}: transformers cannot load this model: {first_line(error)}"
        ) from error
    missing = sorted(info["missing_keys"]) + sorted(str(k) for k in info["mismatched_keys"])
    if missing:
        raise ArtefactError(
            f"{folder}: {len(missing)} weights that config.json asks for are missing or have"
            f" another shape, first {missing[0]}; the folder is not whole: copy it again"
        )
    return model.to(device).eval()


def save_model(model: PreTrainedModel, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """config.json, generation_config.json and model.safetensors; equal models have equal bytes.

    dtype: of the saved floating-point weights; the model itself is not changed.
    """
    transformers_logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype)
        for name, value in sorted(model.state_dict().items())
    }
    # One file whatever the size: safetensors maps it, and an artefact hashes it once.
    model.save_pretrained(folder, state_dict=state, max_shard_size="1000GB")
    _write_config(folder, dtype)
    _write_generation_config(model, folder)


def stop_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """Ids that end a generation, as the model's generation config says; empty when it does not."""
    config: Any = model.generation_config
    eos = config.eos_token_id if config is not None else None
    if eos is None:
        return ()
    return (eos,) if isinstance(eos, int) else tuple(eos)


def context_length(model: PreTrainedModel) -> int:
    """The longest sequence the model was made for, in tokens."""
    length = getattr(model.config, "max_position_embeddings", None)
    if length is None:
        raise ArtefactError(
            f"{type(model).__name__} does not say its context (max_position_embeddings)"
        )
    return int(length)


def context_of(folder: Path) -> int:
    """`context_length` of a model folder or of an adapter's base, without its weights."""
    whole = layers_below(folder)[-1]
    _read_config(whole)
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(str(whole), local_files_only=True)
    length = getattr(config, "max_position_embeddings", None)
    if length is None:
        raise ArtefactError(f"{whole} does not say its context (max_position_embeddings)")
    return int(length)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ArtefactError(
            f"{folder} has no config.json: not a model folder (Hugging Face layout is expected)"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtefactError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ArtefactError(f"{path} is not a JSON object")
    return config


def _refuse_unsafe(folder: Path, config: dict[str, Any]) -> None:
    if "auto_map" in config:
        raise ArtefactError(
            f"{folder}: config.json has auto_map, so its model is code that would have to be run;"
            " use a model of an architecture that transformers itself has"
        )
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
    if pickles:
        raise ArtefactError(
            f"{folder} has its weights only as pickle ({pickles[0]}), which can run code when it"
            " is read; convert them to model.safetensors"
        )
    raise ArtefactError(f"{folder} has no *.safetensors file: there are no weights to load")


def _write_config(folder: Path, dtype: torch.dtype) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    config.pop("_name_or_path", None)
    _write_json(path, config)


def _write_generation_config(model: PreTrainedModel, folder: Path) -> None:
    """Begin, end and pad ids alone: how to sample is the caller's choice, not the model's."""
    from transformers import GenerationConfig

    config: Any = model.generation_config or GenerationConfig.from_model_config(model.config)
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    values = {name: getattr(config, name, None) for name in names}
    _write_json(
        folder / "generation_config.json", {k: v for k, v in values.items() if v is not None}
    )


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
