"""How to sample, and what a sample is. No torch here."""

from dataclasses import dataclass

import numpy as np

from rung.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """max_new_tokens: limit of a sample. temperature: 0 is greedy. top_k: 0 is off. top_p: the
    smallest set of likeliest tokens with at least this probability is kept; 1 is off. stop_ids: a
    sample ends after one of them. Equal seeds give equal samples."""

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    min_new_tokens: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        limits = (
            ("max_new_tokens", self.max_new_tokens >= 0, "0 or more"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1 (off)"),
        )
        for name, holds, limit in limits:
            if not holds:
                raise ConfigError(f"{name} = {getattr(self, name)!r}: it must be {limit}")


@dataclass(frozen=True)
class Completion:
    """One sample. ids: int32 [n], new tokens, the stop token included when stopped.

    stopped: False when max_new_tokens or the model's context ended it.
    """

    ids: np.ndarray
    stopped: bool
