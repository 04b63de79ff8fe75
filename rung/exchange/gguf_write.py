"""A model as a GGUF file, for llama.cpp and what is built on it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch

from rung.errors import ArtefactError
from rung.exchange.gguf_read import ROPE_TENSOR, llama3_factors, require_gguf
from rung.exchange.gguf_vocabulary import GGUFVocabulary, gguf_vocabulary
from rung.exchange.llama2c import pair
from rung.exchange.vocabulary import read_template
from rung.model.load import context_length
from rung.model.types import PreTrainedModel
from rung.tokens.tokenizer import Tokenizer, load_tokenizer

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""transformers' type of a model -> GGUF's name of its architecture."""
TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}  # llama.cpp's LLAMA_FTYPE
_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def check_exportable(config: Any) -> str:
    """GGUF's name of the architecture; ArtefactError lists what works."""
    require_gguf()
    kind = str(config.model_type)
    if kind not in ARCHITECTURES:
        raise ArtefactError(
            f"no GGUF of a {kind}: Rung writes {', '.join(ARCHITECTURES)}; export it with --to hf "
            "and convert that folder with llama.cpp's own converter"
        )
    if getattr(config, "mlp_bias", False):
        raise ArtefactError(f"no GGUF of this {kind}: llama.cpp has no mlp_bias; use --to hf")
    rope = config.rope_parameters
    if rope["rope_type"] not in ("default", "linear", "llama3"):
        raise ArtefactError(
            f"no GGUF with rotary scaling {rope['rope_type']!r}: Rung writes default, linear and "
            "llama3; use --to hf"
        )
    return ARCHITECTURES[kind]


def write_gguf(
    model: PreTrainedModel, folder: Path, path: Path, *, dtype: str, name: str
) -> list[str]:
    """Write `model`, with the tokenizer and chat template of `folder`, into the file `path`; what
    a user must know of it, in sentences."""
    from gguf import GGUFWriter

    config: Any = model.config
    architecture = check_exportable(config)
    rows = model.get_input_embeddings().weight.shape[0]
    bpe = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(folder)
    layout = tokenizer.chat.layout(("user", "assistant"), generation_prompt=False)
    vocabulary = gguf_vocabulary(bpe, rows=rows, begins=bool(layout.items[0].special))
    said = list(vocabulary.lines)
    context, window = context_length(model), getattr(config, "sliding_window", None)
    if window and window < context and getattr(config, "use_sliding_window", True):
        said.append(
            f"context of {window:,} instead of {context:,}: llama.cpp's {architecture} has no "
            "sliding window, and within one it is the same model"
        )
        context = window
    writer = GGUFWriter(str(path), architecture)
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[dtype])
    _add_shape(writer, config, context)
    _add_vocabulary(writer, vocabulary, tokenizer, read_template(folder))
    for tensor, values in _tensors(model, architecture):
        _add_tensor(writer, tensor, values, dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return said


def _add_shape(writer: Any, config: Any, context: int) -> None:
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    rope = config.rope_parameters
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if rope["rope_type"] == "linear":
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _add_vocabulary(
    writer: Any, vocabulary: GGUFVocabulary, tokenizer: Tokenizer, template: str
) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    if vocabulary.pre:
        writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    writer.add_token_merges(vocabulary.merges)
    if vocabulary.model == "llama":
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    writer.add_bos_token_id(tokenizer.bos)
    writer.add_eos_token_id(tokenizer.stop_ids[0])
    if tokenizer.document_end != tokenizer.stop_ids[0]:
        writer.add_eot_token_id(tokenizer.stop_ids[0])
    writer.add_pad_token_id(tokenizer.pad)
    # What is served must be what was trained: llama.cpp begins with bos what a chat began with it,
    # and takes the second one away that the template writes.
    writer.add_add_bos_token(begins_with_bos(tokenizer))
    writer.add_add_eos_token(False)
    writer.add_chat_template(template)


def begins_with_bos(tokenizer: Tokenizer) -> bool:
    """Whether a conversation begins with the begin token, as the chat template writes it."""
    layout = tokenizer.chat.layout(("user", "assistant"), generation_prompt=False)
    first = layout.items[0].special
    return bool(first) and tokenizer.special(first) == tokenizer.bos


def _tensors(model: PreTrainedModel, architecture: str) -> Iterator[tuple[str, np.ndarray]]:
    config: Any = model.config
    tied = bool(config.tie_word_embeddings)
    rope = config.rope_parameters
    if rope["rope_type"] == "llama3":
        width = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        yield ROPE_TENSOR, llama3_factors(rope, width)
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for full, weight in model.state_dict().items():
        name, _, suffix = full.rpartition(".")
        if name == "lm_head" and tied:
            continue
        if name in top:
            new = top[name]
        else:
            _, _, layer, own = name.split(".", 3)
            new = f"blk.{layer}.{_NAMES[own]}"
            if architecture == "llama" and own in ("self_attn.q_proj", "self_attn.k_proj"):
                query = own == "self_attn.q_proj"
                heads = config.num_attention_heads if query else config.num_key_value_heads
                rows = weight if weight.ndim == 2 else weight[:, None]
                weight = pair(rows, heads).view_as(weight)
        yield f"{new}.{suffix}", weight.detach().to(torch.float32).numpy()


def _add_tensor(writer: Any, name: str, values: np.ndarray, dtype: str) -> None:
    """Vectors stay float32, as llama.cpp wants them; a row that 32 does not divide is half."""
    from gguf import GGMLQuantizationType, quants

    if values.ndim == 1 or dtype == "f32":
        writer.add_tensor(name, np.ascontiguousarray(values))
        return
    kind = GGMLQuantizationType[TYPES[dtype]]
    if dtype == "q8_0" and values.shape[-1] % 32:
        kind = GGMLQuantizationType.F16
    if kind == GGMLQuantizationType.F16:
        writer.add_tensor(name, values.astype(np.float16))
    else:
        writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)
