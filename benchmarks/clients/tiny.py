"""A tiny random model that a server can load: readable letters, and never an end by itself."""

from pathlib import Path

import torch
from exchange_models import make_model, tiny_tokenizer

CONTEXT = 8192
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tiny(folder: Path) -> None:
    """A folder as `rung import` reads it."""
    tokenizer = tiny_tokenizer(SPECIAL, TEMPLATE)
    model = make_model("llama")
    model.config.max_position_embeddings = CONTEXT
    model.config.eos_token_id = model.generation_config.eos_token_id = 2
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)  # far from uniform: answers depend on what was asked
        for token in range(len(tokenizer)):
            text = tokenizer.decode([token])
            if not (text.strip().isalpha() and text.isascii()):
                model.lm_head.weight[token] = 0  # logit 0: chosen only where a grammar says so
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
