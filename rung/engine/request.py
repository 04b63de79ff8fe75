"""What the engine is asked for, and the samples it makes of it. No torch here."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from rung.engine.constraint import Constraint
from rung.engine.sampling import Completion, Sampling, TokenLogps
from rung.errors import DataError, RungError

Finish = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, eq=False)
class Request:
    """Samples of one prompt. prompt: ids [n], at least one.

    key: what names the prompt to the random numbers. num_logps: log-probabilities come with so many
    of the likeliest tokens, None: without. echo: those of the prompt's tokens, too. adapter: which
    of the model's adapters speaks; None: the model without one.
    """

    prompt: np.ndarray
    sampling: Sampling
    num_samples: int = 1
    key: int = 0
    num_logps: int | None = None
    echo: bool = False
    adapter: str | None = None
    constraint: Constraint | None = None


@dataclass(eq=False)
class Sample:
    """One sample on its way. ids: new tokens so far. limit: most of them. finish: once it ended.
    error: why it cannot go on, where its constraint gave up; it then ends as if cancelled."""

    request: Request
    index: int
    limit: int
    constraint: Constraint | None = None
    ids: list[int] = field(default_factory=list)
    finish: Finish | None = None
    error: RungError | None = None
    prompt_logps: TokenLogps | None = None
    logps: list[tuple[float, np.ndarray, np.ndarray]] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens that it may come to, its prompt among them."""
        return len(self.request.prompt) + self.limit

    def completion(self) -> Completion:
        logps = stack_logps(self.logps) if self.request.num_logps is not None else None
        ids = np.array(self.ids, dtype=np.int32)
        return Completion(ids, self.finish == "stop", logps, self.prompt_logps)


def stack_logps(parts: list[tuple[float, np.ndarray, np.ndarray]]) -> TokenLogps:
    """Of single tokens: (log-probability, ids and log-probabilities [K] of the likeliest)."""
    width = len(parts[0][1]) if parts else 0
    return TokenLogps(
        np.array([part[0] for part in parts], dtype=np.float32),
        np.array([part[1] for part in parts], dtype=np.int32).reshape(len(parts), width),
        np.array([part[2] for part in parts], dtype=np.float32).reshape(len(parts), width),
    )


def check_prompt(prompt: np.ndarray, context: int, *, name: str = "the prompt") -> None:
    """DataError when it is empty or leaves no room for an answer."""
    if len(prompt) == 0:
        raise DataError(f"{name} is empty; begin it with at least one token")
    if len(prompt) >= context:
        raise DataError(
            f"{name} has {len(prompt)} tokens, the model's context is {context} and"
            f" an answer needs at least one: shorten it to {context - 1} tokens"
        )
