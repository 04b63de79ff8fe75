"""Tiny models of many families with random weights, each a folder as its makers publish it."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

VOCAB = 320
END = "<|endoftext|>"
TEXT = (
    "Once upon a time there was a girl who liked to play in the garden. "
    "def add(a, b):\n    return a + b\n What is the capital? It is here. "
) * 3
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
GPT2 = {
    "vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256,
    "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", SHAPE),
    "llama3-scaling": ("LlamaConfig", {**SHAPE, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}),
    "mistral": ("MistralConfig", {**SHAPE, "sliding_window": 64}),
    "qwen2": ("Qwen2Config", {**SHAPE, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {**SHAPE, "head_dim": 16}),
    "gemma2": ("Gemma2Config", {**SHAPE, "head_dim": 8, "sliding_window": 16}),
    "gemma3": ("Gemma3TextConfig", {**SHAPE, "head_dim": 8, "sliding_window": 16}),
    "phi3": ("Phi3Config", SHAPE),
    "gpt2": ("GPT2Config", GPT2),
    "olmo2": ("Olmo2Config", SHAPE),
    "smollm3": ("SmolLM3Config", SHAPE),
}  # fmt: skip


def tiny_tokenizer(special: tuple[str, ...] = (END,), template: str | None = None) -> Any:
    """A byte-level BPE of VOCAB entries, GPT-2's way of cutting text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        show_progress=False,
        special_tokens=[AddedToken(token, special=True) for token in special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    bpe.train_from_iterator([TEXT], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=special[0])
    tokenizer.chat_template = template
    return tokenizer


def make_model(family: str) -> Any:
    name, values = FAMILIES[family]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(getattr(transformers, name)(**values)).eval()


def make_folder(folder: Path, family: str = "llama", *, shard: str | None = None) -> Path:
    """A published model: safetensors, tokenizer, no chat template."""
    options = {"max_shard_size": shard} if shard else {}
    make_model(family).save_pretrained(folder, **options)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def plain_logits(folder: Path, ids: list[int]) -> torch.Tensor:
    """By plain transformers, without anything of Rung."""
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]
