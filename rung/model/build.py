"""A Llama with random weights: same shape and seed, same bytes."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch

from rung.errors import ConfigError
from rung.model.attention import register
from rung.model.shape import Shape
from rung.model.types import PreTrainedModel


class Vocabulary(Protocol):
    """What a model must know of its tokenizer: how many ids there are, and the special ones."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def bos(self) -> int:
        """The id that begins every document and conversation."""

    @property
    def pad(self) -> int: ...

    @property
    def stop_ids(self) -> Sequence[int]:
        """Ids that end a generation: end of message and end of text."""


def build_model(shape: Shape, tokenizer: Vocabulary, *, seed: int) -> PreTrainedModel:
    """A float32 Llama on the CPU; the global random state is neither read nor moved.

    The vocabulary is not padded: at the default of 4,096 it is a multiple of 64 already, and a
    padded head would need every sampler to know which ids do not exist.
    """
    specials = {tokenizer.bos, tokenizer.pad, *tokenizer.stop_ids}
    beyond = sorted(i for i in specials if not 0 <= i < tokenizer.vocab_size)
    if beyond:
        raise ConfigError(
            f"special token ids {beyond} lie outside a vocabulary of {tokenizer.vocab_size};"
            " the tokenizer is damaged: build it again"
        )
    from transformers import LlamaConfig, LlamaForCausalLM  # seconds: only where it is built

    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tied,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        rms_norm_eps=1e-5,
        bos_token_id=tokenizer.bos,
        eos_token_id=list(tokenizer.stop_ids),
        pad_token_id=tokenizer.pad,
        attn_implementation=register(),
    )
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config)
    _init_weights(model, shape, seed=seed)
    return model.train()


@torch.no_grad()
def _init_weights(model: PreTrainedModel, shape: Shape, *, seed: int) -> None:
    """Normal weights in the order of parameter names, from one generator.

    Embeddings have a deviation of 0.02, so that a tied head starts near the uniform distribution.
    Matrices have 0.02 at width 768 and keep the size of their outputs at other widths. Those that
    write to the residual stream are smaller by 1 / sqrt(2 layers): GPT-2 (Radford et al. 2019,
    section 2.3).
    """
    generator = torch.Generator().manual_seed(seed)
    matrix = 0.02 * math.sqrt(768 / shape.width)
    for name, weight in sorted(model.named_parameters()):
        if weight.ndim < 2:
            weight.fill_(1.0)  # norms; this Llama has no biases
            continue
        std = 0.02 if "embed" in name or "lm_head" in name else matrix
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            std /= math.sqrt(2 * shape.layers)
        weight.normal_(0.0, std, generator=generator)
