"""The one dial: a size, and the widths, heads and layers that follow from it. No torch here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pydantic

from rung.config import Config, did_you_mean
from rung.errors import ConfigError

HEAD_WIDTH = 64
"""Width of a head; it is kept at every size, the number of heads grows instead."""


def _ffn(width: int) -> int:
    """SwiGLU keeps the cost of a 4x feed-forward at 8/3 of the width (Shazeer 2020, sec. 2)."""
    return -(-8 * width // (3 * 64)) * 64


# size: (width, layers, heads, key-value heads, feed-forward, context). A size is named after its
# parameters with the vocabulary it is usually trained with: 4 k up to 10m, 8 k at 30m, 32 k to 50 k
# above. Key-value heads are shared only where their cache begins to matter.
SIZES: Mapping[str, tuple[int, int, int, int, int, int]] = {
    "1m": (128, 4, 2, 2, _ffn(128), 512),
    "4m": (256, 4, 4, 4, _ffn(256), 512),
    "10m": (384, 5, 6, 6, _ffn(384), 512),
    "30m": (512, 8, 8, 8, _ffn(512), 1024),
    "124m": (768, 12, 12, 12, _ffn(768), 1024),
    "350m": (1024, 24, 16, 16, _ffn(1024), 2048),
    "1b": (2048, 22, 32, 8, _ffn(2048), 2048),
    "3b": (3072, 28, 48, 8, _ffn(3072), 4096),
    "7b": (4096, 32, 64, 16, 14336, 4096),
}


class ModelConfig(Config):
    """Size of a model raised from random weights; every field but `size` overrides the dial."""

    size: str = pydantic.Field("4m", description=f"one of {', '.join(SIZES)}")
    depth: int | None = pydantic.Field(
        None, gt=0, description="layers; instead of size: width 64 x depth, as many heads"
    )
    width: int | None = pydantic.Field(None, gt=0, description="channels of the residual stream")
    layers: int | None = pydantic.Field(None, gt=0, description="decoder layers")
    heads: int | None = pydantic.Field(None, gt=0, description="query heads of a layer")
    kv_heads: int | None = pydantic.Field(None, gt=0, description="key-value heads of a layer")
    ffn: int | None = pydantic.Field(None, gt=0, description="channels of the feed-forward layer")
    context: int | None = pydantic.Field(None, gt=1, description="longest sequence, in tokens")
    tied: bool | None = pydantic.Field(
        None, description="one matrix for input and output embeddings"
    )
    rope_theta: float = pydantic.Field(10000.0, gt=0, description="base of the rotary angles")


@dataclass(frozen=True)
class Shape:
    """The dimensions of a Llama.

    origins says where each value came from, such as {"width": "size 4m", "context": "override"}.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    context: int
    tied: bool
    rope_theta: float = 10000.0
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def num_body_parameters(self) -> int:
        """Parameters without embeddings: the layers and the final norm."""
        attention = 2 * self.width * self.width + 2 * self.width * self.kv_heads * self.head_width
        return self.layers * (attention + 3 * self.width * self.ffn + 2 * self.width) + self.width

    def num_parameters(self, vocab: int) -> int:
        """Parameters with a vocabulary of `vocab` tokens."""
        return self.num_body_parameters + (1 if self.tied else 2) * vocab * self.width

    def flops_per_token(self, vocab: int, length: int) -> float:
        """FLOP of one trained token, forward and backward, in sequences of `length` tokens.

        6 x matrix parameters + attention products (PaLM, Chowdhery et al. 2022, appendix B),
        halved because only the causal half of the scores counts.
        """
        matrices = self.num_body_parameters - (2 * self.layers + 1) * self.width
        return 6 * (matrices + vocab * self.width) + 6 * self.layers * self.width * length

    def table(self) -> list[tuple[str, str, str]]:
        """(field, value, where it came from), for printing."""
        names = ("width", "layers", "heads", "kv_heads", "ffn", "context", "tied", "rope_theta")
        return [(n, str(getattr(self, n)), self.origins.get(n, "")) for n in names]


def resolve(config: ModelConfig) -> Shape:
    """The shape that follows from the dial and its overrides; ConfigError where they clash."""
    values, origin = _from_dial(config)
    origins = dict.fromkeys(values, origin)
    origins["tied"] = "default" if config.tied is None else "override"
    for name in values:
        override = getattr(config, name)
        if override is not None:
            values[name] = override
            origins[name] = "override"
    if config.heads is not None and config.kv_heads is None:
        values["kv_heads"] = config.heads
        origins["kv_heads"] = "heads"
    if config.width is not None:
        if config.heads is None:
            values["heads"] = values["kv_heads"] = max(1, config.width // HEAD_WIDTH)
            origins["heads"] = origins["kv_heads"] = "width"
            if config.kv_heads is not None:
                values["kv_heads"], origins["kv_heads"] = config.kv_heads, "override"
        if config.ffn is None:
            values["ffn"], origins["ffn"] = _ffn(config.width), "width"
    origins["rope_theta"] = "override" if "rope_theta" in config.model_fields_set else "default"
    # A small model spends a third of itself on embeddings: one matrix serves both ends.
    tied = values["width"] <= 1024 if config.tied is None else config.tied
    shape = Shape(**values, tied=tied, rope_theta=config.rope_theta, origins=origins)
    _check(shape)
    return shape


def _from_dial(config: ModelConfig) -> tuple[dict[str, int], str]:
    names = ("width", "layers", "heads", "kv_heads", "ffn", "context")
    if config.depth is None:
        size = config.size.lower()
        if size not in SIZES:
            raise ConfigError(
                f"size {config.size!r} is unknown{did_you_mean(size, list(SIZES))}"
                f" (sizes: {', '.join(SIZES)}; or give depth)"
            )
        return dict(zip(names, SIZES[size], strict=True)), f"size {size}"
    if "size" in config.model_fields_set:
        raise ConfigError(
            f"size {config.size!r} and depth {config.depth} are both given; keep one of them"
        )
    width = HEAD_WIDTH * config.depth
    context = next(s[5] for s in SIZES.values() if s[0] >= width or s is SIZES["7b"])
    values = (width, config.depth, config.depth, config.depth, _ffn(width), context)
    return dict(zip(names, values, strict=True)), f"depth {config.depth}"


def _check(shape: Shape) -> None:
    if shape.width % shape.heads or shape.head_width % 2:
        fitting = [h for h in range(1, shape.width) if shape.width % (2 * h) == 0]
        near = sorted(fitting, key=lambda h: abs(h - shape.heads))[:3]
        raise ConfigError(
            f"width {shape.width} does not split into {shape.heads} heads of an even width;"
            f" use heads {', '.join(str(h) for h in sorted(near))}"
        )
    if shape.heads % shape.kv_heads:
        fitting = [k for k in range(1, shape.heads + 1) if shape.heads % k == 0]
        raise ConfigError(
            f"{shape.heads} heads cannot share {shape.kv_heads} kv_heads evenly;"
            f" use kv_heads {', '.join(map(str, fitting))}"
        )


def read_shape(config: Any, *, context: int) -> Shape:
    """The dimensions that a transformers config names."""
    heads = config.num_attention_heads
    return Shape(
        width=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        ffn=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        context=context,
        tied=bool(getattr(config, "tie_word_embeddings", True)),
        origins={},
    )
