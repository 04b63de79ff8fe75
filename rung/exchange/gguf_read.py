"""GGUF files: dequantised once, then a model like any other.

transformers reads them; what it leaves out of the metadata without a word is put back here, or the
file is refused: scaled rotary angles, widths of heads, how the vocabulary cuts text.
"""

import contextlib
import importlib.util
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import normalizers, pre_tokenizers

from rung.errors import ArtefactError, ResourceError, first_line
from rung.exchange.gguf_header import GGUFHeader, check_whole, read_gguf_header
from rung.exchange.vocabulary import Vocabulary, read_vocabulary
from rung.model.types import PreTrainedModel

ROPE_TENSOR = "rope_freqs.weight"
IGNORES_MERGES = ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "tekken")
"""Vocabularies in which a word that is an entry is that entry, whatever the merges say."""
_LLAMA3_SCALINGS = (8.0, 32.0, 16.0, 4.0)  # of the published Llama 3.x, likeliest first
_FLOAT32, _FLOAT16, _BFLOAT16 = 0, 1, 30


def require_gguf() -> None:
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ResourceError(
            f"GGUF files need {' and '.join(missing)}, which is not installed: "
            "pip install 'rung[gguf]'"
        )


def check_gguf(path: Path) -> GGUFHeader:
    """The header of a file that can be imported; ArtefactError says why it cannot."""
    require_gguf()
    header = read_gguf_header(path)
    check_whole(path, header)
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    kind = header.architecture
    if kind not in {name.replace("_", "") for name in GGUF_SUPPORTED_ARCHITECTURES} | set(
        GGUF_SUPPORTED_ARCHITECTURES
    ):
        raise ArtefactError(
            f"{path} is a GGUF of architecture {kind!r}, which transformers cannot read; it can "
            f"read {', '.join(sorted(GGUF_SUPPORTED_ARCHITECTURES))}: import the safetensors the "
            "file was made from"
        )
    scaling = header.of_model("rope.scaling.type")
    if scaling not in (None, "none", "linear"):
        raise ArtefactError(
            f"{path} scales its rotary angles by {scaling!r}, which transformers does not read "
            "from a GGUF: longer texts would be garbled; import the safetensors it was made from"
        )
    if "tokenizer.ggml.tokens" not in header.metadata:
        raise ArtefactError(
            f"{path} holds no tokenizer: it is a part of a model, or a vision tower"
        )
    return header


def read_gguf_model(path: Path, header: GGUFHeader) -> PreTrainedModel:
    """The dequantised model, float32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    place: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # bars of tqdm's own
            config = AutoConfig.from_pretrained(str(path.parent), **place)
            _complete(config, header, path)
            model, info = AutoModelForCausalLM.from_pretrained(
                str(path.parent),
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                **place,
            )
    except ArtefactError:
        raise
    except Exception as error:  # readers of formats raise of all kinds
        raise ArtefactError(
            f"{path}: transformers cannot load this GGUF: {first_line(error)}"
        ) from error
    missing = sorted(info["missing_keys"]) + sorted(str(k) for k in info["mismatched_keys"])
    if missing:
        raise ArtefactError(
            f"{path}: {len(missing)} weights of the architecture are not in the file, first "
            f"{missing[0]}; import the safetensors it was made from"
        )
    model.hf_quantizer = None  # the weights are plain now; saving asks for these
    model.is_quantized = False
    for name in ("quantization_config", "_model_name_or_path"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    return model.eval()


def stored_kind(header: GGUFHeader) -> str:
    """float16 or bfloat16 where every matrix is kept so, else float32."""
    kinds = {tensor.kind for tensor in header.tensors.values() if len(tensor.shape) > 1}
    if kinds == {_FLOAT16}:
        return "float16"
    return "bfloat16" if kinds == {_BFLOAT16} else "float32"


def _complete(config: Any, header: GGUFHeader, path: Path) -> None:
    """Set in `config` what transformers' reader leaves at a default."""
    width = header.of_model("attention.key_length")
    if width is not None and getattr(config, "head_dim", width) != width:
        config.head_dim = width
    theta = header.of_model("rope.freq_base") or 10000.0
    if header.of_model("rope.scaling.type") == "linear":
        factor = float(header.of_model("rope.scaling.factor") or 1.0)
        config.rope_parameters = {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    if ROPE_TENSOR in header.tensors:
        config.rope_parameters = _llama3_scaling(config, header, path, theta)


def _llama3_scaling(config: Any, header: GGUFHeader, path: Path, theta: float) -> dict[str, Any]:
    """The settings of Llama 3's scaling that give the factors the file lists."""
    tensor = header.tensors[ROPE_TENSOR]
    count = math.prod(tensor.shape)
    listed = np.fromfile(path, "<f4", count, offset=header.start + tensor.offset)
    for factor in _LLAMA3_SCALINGS:
        settings = {
            "rope_type": "llama3",
            "rope_theta": theta,
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        if np.allclose(llama3_factors(settings, 2 * count), listed, rtol=1e-4):
            return settings
    raise ArtefactError(
        f"{path} scales its rotary angles by a list that is none of Llama 3's; import the "
        "safetensors it was made from"
    )


def llama3_factors(settings: dict[str, Any], head_width: int) -> np.ndarray:
    """What each frequency is divided by: 1 for short waves, `factor` for long ones, a smooth
    passage between (Llama 3.1's apply_scaling)."""
    theta, factor = settings["rope_theta"], settings["factor"]
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    context = settings["original_max_position_embeddings"]
    waves = 2 * np.pi * theta ** (np.arange(0, head_width, 2) / head_width)
    smooth = np.clip((context / waves - low) / (high - low), 0.0, 1.0)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def read_gguf_vocabulary(path: Path, header: GGUFHeader) -> Vocabulary:
    """The tokenizer and chat template inside the file."""
    vocabulary = read_vocabulary(path.parent, gguf_file=path.name)
    kind = header.metadata.get("tokenizer.ggml.pre")
    if header.metadata.get("tokenizer.ggml.model") == "gpt2":
        if kind == "smollm":  # digits one by one, then GPT-2's words; transformers leaves it out
            vocabulary.bpe.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
                ]
            )
        vocabulary.bpe.model.ignore_merges = kind in IGNORES_MERGES
    elif header.metadata.get("tokenizer.ggml.model") == "llama" and "gemma" not in (
        header.architecture
    ):
        # As sentencepiece and llama.cpp have it: the space is put before a text that begins with
        # one, too. transformers' Llama class leaves it out there.
        steps: list[Any] = [normalizers.Replace(" ", "\u2581")]
        if header.metadata.get("tokenizer.ggml.add_space_prefix", True):
            steps.insert(0, normalizers.Prepend("\u2581"))
        vocabulary.bpe.normalizer = normalizers.Sequence(steps)
        vocabulary.bpe.pre_tokenizer = None
    return vocabulary
