"""How long and how fast to train: what follows from a model's size, and its overrides."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pydantic

from rung.config import Config
from rung.model.shape import Shape


class BudgetConfig(Config):
    """Tokens and learning rates; what is not given follows from the size of the model."""

    optimizer: Literal["muon", "adamw"] = pydantic.Field(
        "muon", description="muon: AdamW has the embeddings and norms only"
    )

    tokens: int | None = pydantic.Field(None, gt=0, description="tokens to train on, in all")
    tokens_per_parameter: float | None = pydantic.Field(
        None, gt=0, description="tokens to train on per parameter; 20 when nothing is given"
    )
    tokens_per_step: int | None = pydantic.Field(
        None, gt=0, description="tokens of one optimizer update"
    )
    learning_rate_muon: float | None = pydantic.Field(
        None, gt=0, description="peak for matrices, per update of spectral norm 1"
    )
    learning_rate_adamw: float | None = pydantic.Field(
        None, gt=0, description="peak for embeddings, norms and all of an AdamW-only run"
    )


@dataclass(frozen=True)
class Budget:
    """A resolved budget. origins says where each value came from, as in `Shape`."""

    tokens: int
    tokens_per_step: int
    learning_rate_muon: float
    learning_rate_adamw: float
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def num_steps(self) -> int:
        """Updates that see the budget once; at least one."""
        return max(1, math.ceil(self.tokens / self.tokens_per_step))

    def table(self) -> list[tuple[str, str, str]]:
        """(field, value, where it came from), for printing."""
        names = ("tokens", "tokens_per_step", "learning_rate_muon", "learning_rate_adamw")
        return [(name, f"{getattr(self, name):g}", self.origins.get(name, "")) for name in names]


def resolve_budget(config: BudgetConfig, shape: Shape, *, vocab: int) -> Budget:
    """The budget of a model of this shape.

    20 tokens a parameter is where Hoffmann et al. (2022) found compute best spent. The AdamW rate
    falls as 1 / width, which goes through the rates of Brown et al. (2020, table 2.1) at 768 to
    2048. Beside Muon it moves embeddings and norms only, which bear 4.5 times as much: 0.0018 at
    width 256 left 0.4 nats on the table in 60 steps (docs/training.md). Muon's update has the same
    spectral norm at every width, so its rate stays. The batch grows with the model, from the sizes
    that table and our small runs used: a rule of thumb.
    """
    num_parameters = shape.num_parameters(vocab)
    batch = 8192 * (shape.num_body_parameters / 3.2e6) ** 0.72
    ratio = config.tokens_per_parameter or 20.0
    derived: dict[str, tuple[float, str]] = {
        "tokens": (
            math.ceil(ratio * num_parameters),
            f"{ratio:g} tokens x {num_parameters} parameters",
        ),
        "tokens_per_step": (
            2 ** min(20, max(12, round(math.log2(batch)))),
            f"{shape.num_body_parameters} parameters",
        ),
        "learning_rate_muon": (0.015, "default"),
        "learning_rate_adamw": (
            (2.7e-3 if config.optimizer == "muon" else 6e-4) * 768 / shape.width,
            f"width {shape.width}, {config.optimizer}",
        ),
    }
    values: dict[str, float] = {}
    origins: dict[str, str] = {}
    for name, (value, origin) in derived.items():
        override = getattr(config, name)
        values[name] = value if override is None else override
        origins[name] = origin if override is None else "override"
    return Budget(
        tokens=int(values["tokens"]),
        tokens_per_step=int(values["tokens_per_step"]),
        learning_rate_muon=values["learning_rate_muon"],
        learning_rate_adamw=values["learning_rate_adamw"],
        origins=origins,
    )
