"""What can be said of a model folder before its weights are read: refusals, each with its reason.

Forest attention needs an architecture that hands its attention to a backend, and hands unknown
arguments through to it. Whether packed texts really stay apart is measured on the loaded model.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rung.errors import ArtefactError, RungError, first_line
from rung.exchange.source import PICKLES
from rung.exchange.vocabulary import check_has_tokenizer
from rung.model.attention import to_torch
from rung.model.forward import target_logps
from rung.model.types import PreTrainedModel
from rung.tokens.forest import document, pack

KNOWN = "Llama, Mistral, Qwen2, Qwen3, Gemma, Phi-3, GPT-2, OLMo 2 and SmolLM3"
"""Families that the tests import, train, generate with and export."""
_NO_WAY = (
    "; there is no slower way round it in Rung: take a model of another family, such as " + KNOWN
)


def check_folder(folder: Path) -> dict[str, Any]:
    """config.json of a folder whose weights may be read; ArtefactError says what forbids it."""
    if (folder / "adapter_config.json").is_file():
        raise ArtefactError(
            f"{folder} is an adapter, not a whole model: import its base, and train an adapter of "
            "your own, or merge it with peft (merge_and_unload) and import the result"
        )
    config = _read_json(folder / "config.json")
    if "auto_map" in config:
        raise ArtefactError(
            f"{folder}: config.json has auto_map: the model comes as code that would have to run, "
            f"which Rung never does{_native(config)}"
        )
    if "quantization_config" in config:
        method = config["quantization_config"].get("quant_method", "?")
        raise ArtefactError(
            f"{folder} has quantised weights ({method}); import the unquantised model, or a GGUF"
        )
    check_architecture(config, where=folder)
    _check_weights(folder)
    check_has_tokenizer(folder)
    return config


def check_architecture(config: dict[str, Any], *, where: Path) -> None:
    """ArtefactError unless transformers has a decoder with attention backends for this config."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = str(config.get("model_type", ""))
    if config.get("is_encoder_decoder"):
        raise ArtefactError(
            f"{where}: {kind} is an encoder-decoder; Rung trains decoders only{_NO_WAY}"
        )
    if "vision_config" in config or "audio_config" in config or "text_config" in config:
        raise ArtefactError(
            f"{where}: {kind} reads more than text; import a model of the family that is text "
            "alone (Gemma 3: 270m and 1b; Llama: 3.1 and 3.2 up to 3b)"
        )
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    if name is None:
        raise ArtefactError(
            f"{where}: transformers has no causal language model of type {kind!r}{_NO_WAY}"
        )
    import transformers

    model_class = getattr(transformers, name)
    if not getattr(model_class, "_supports_attention_backend", False):
        raise ArtefactError(
            f"{where}: {name} has its attention built in, so nothing keeps packed texts "
            f"apart{_NO_WAY}"
        )


def _native(config: dict[str, Any]) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.get("model_type")
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return (
            f"; transformers itself has {kind}: delete auto_map from config.json to import it "
            "with that"
        )
    return "; take a model of an architecture that transformers itself has, such as " + KNOWN


def _check_weights(folder: Path) -> None:
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
        if pickles:
            raise ArtefactError(
                f"{folder} has its weights only as pickle ({pickles[0]}), which can run code when "
                "it is read; convert them to model.safetensors"
            )
        raise ArtefactError(f"{folder} has no *.safetensors file: there are no weights to import")
    index = folder / "model.safetensors.index.json"
    named = set(_read_json(index).get("weight_map", {}).values()) if index.is_file() else set()
    missing = sorted(named - {shard.name for shard in shards})
    if missing:
        raise ArtefactError(
            f"{folder}: {len(missing)} of {len(named)} shards are missing, first {missing[0]}; "
            "download them, too"
        )
    for shard in shards:
        _check_whole(shard)


def _check_whole(shard: Path) -> None:
    """A safetensors file is as long as its header says: a download cut short is found here."""
    size = shard.stat().st_size
    header = read_safetensors_header(shard)
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    with shard.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
    if size != start + max(ends, default=0):
        raise ArtefactError(
            f"{shard} has {size:,} bytes where its header says {start + max(ends, default=0):,}: "
            "it is cut short; download it again"
        )


def read_safetensors_header(shard: Path) -> dict[str, Any]:
    try:
        with shard.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, 100_000_000)))
        assert isinstance(header, dict)
    except (ValueError, AssertionError):
        raise ArtefactError(
            f"{shard} is no safetensors file, or only its beginning; download it again"
        ) from None
    return header


def stored_dtype(folder: Path) -> torch.dtype:
    """The one floating type of all weights of a folder; float32 where they differ."""
    kinds = {
        entry["dtype"]
        for shard in folder.glob("*.safetensors")
        for name, entry in read_safetensors_header(shard).items()
        if name != "__metadata__"
    }
    return {"{'BF16'}": torch.bfloat16, "{'F16'}": torch.float16}.get(str(kinds), torch.float32)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtefactError(f"{path.parent} has no {path.name}: not a model folder") from None
    except ValueError as error:
        raise ArtefactError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ArtefactError(f"{path} is not a JSON object")
    return value


@torch.no_grad()
def check_packing(model: PreTrainedModel) -> float:
    """The largest difference in log-probability between texts packed together and each alone.

    ArtefactError when packing changes a text: parts of the model (a recurrence, an attention sink)
    see across it.
    """
    rows = min(model.get_input_embeddings().weight.shape[0], 1000)
    texts = [np.random.default_rng(seed).integers(0, rows, 12) for seed in (1, 2)]
    name = type(model).__name__
    try:
        packed, _ = target_logps(model, to_torch(pack([document(text) for text in texts])))
    except (RungError, RuntimeError, NotImplementedError, TypeError, AttributeError) as error:
        raise ArtefactError(
            f"{name} cannot be run on packed texts: {first_line(error)}{_NO_WAY}"
        ) from error
    backend = model.config._attn_implementation
    model.set_attn_implementation("eager")
    alone = []
    for text in texts:
        ids = torch.from_numpy(text)[None]
        logp = torch.log_softmax(model(ids).logits[0].float(), -1)
        alone.append(logp[:-1].gather(1, ids[0, 1:, None])[:, 0])
    model.set_attn_implementation(backend)
    gap = float((packed - torch.cat(alone)).abs().max())
    limit = 1e-3 if model.dtype == torch.float32 else 0.3  # 8 bits of mantissa through all layers
    if not gap <= limit:
        raise ArtefactError(
            f"{name} sees across texts that are packed together (log-probabilities differ by "
            f"{gap:.2g}, rounding allows {limit}){_NO_WAY}"
        )
    return gap
