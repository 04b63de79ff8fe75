"""How to sample, and what a sample is. No torch here."""

from dataclasses import dataclass

import numpy as np

from rung.errors import ConfigError

MAX_STOPS = 16


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and when a sample ends.

    max_new_tokens, min_new_tokens: limits of a sample; before the lower one nothing ends it.
    temperature: 0 is greedy. top_k: 0 is off. top_p: the smallest set of likeliest tokens with at
    least this probability is kept; 1 is off. min_p: tokens under this share of the likeliest one's
    probability are left out; 0 is off. They act in this order: temperature, top_k, top_p, min_p.

    repetition_penalty: logits of tokens that the prompt or the answer has are divided by it where
    positive, else multiplied (Keskar et al. 2019, section 4.1). presence_penalty and
    frequency_penalty are taken off the logits of tokens that the answer has, once, and once for
    each time.
    logit_bias: (token id, added to its logit).

    stop_ids: a sample ends after one of them. stop: texts before which it ends; they are looked for
    where there is text, not in `generate`. Equal seeds give equal samples, whatever else runs.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop_ids: tuple[int, ...] = ()
    min_new_tokens: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        finite = float("inf")
        limits = (
            ("max_new_tokens", self.max_new_tokens >= 0, "at least 0"),
            ("min_new_tokens", self.min_new_tokens >= 0, "at least 0"),
            ("temperature", 0 <= self.temperature < finite, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1 (off)"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 (off) and 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < finite, "above 0; 1 is off"),
            ("presence_penalty", abs(self.presence_penalty) < finite, "finite; 0 is off"),
            ("frequency_penalty", abs(self.frequency_penalty) < finite, "finite; 0 is off"),
            ("stop", len(self.stop) <= MAX_STOPS and all(self.stop), f"at most {MAX_STOPS} texts"),
        )
        for name, holds, limit in limits:
            if not holds:
                raise ConfigError(f"{name} = {getattr(self, name)!r}: it must be {limit}")

    @property
    def reshapes(self) -> bool:
        """Whether logits are changed by more than the temperature before a token is drawn."""
        return bool(
            self.repetition_penalty != 1
            or self.presence_penalty
            or self.frequency_penalty
            or self.logit_bias
            or self.min_new_tokens
        )

    @property
    def truncates(self) -> bool:
        """Whether some tokens are left out by their probability."""
        return self.temperature > 0 and bool(self.top_k or self.top_p < 1 or self.min_p)


@dataclass(frozen=True, eq=False)
class TokenLogps:
    """Log-probabilities of n tokens under the model itself: temperature 1, nothing left out.

    chosen: float32 [n], nan where there is none (the first token of a prompt). top_ids, top: the
    likeliest at each place, int32 and float32 [n, K], likeliest first.
    """

    chosen: np.ndarray
    top_ids: np.ndarray
    top: np.ndarray


@dataclass(frozen=True)
class Completion:
    """One sample. ids: int32 [n], new tokens, the stop token included when stopped.

    stopped: False when max_new_tokens or the model's context ended it. logps: of the new tokens,
    where they were asked for. prompt_logps: of the prompt's tokens, likewise.
    """

    ids: np.ndarray
    stopped: bool
    logps: TokenLogps | None = None
    prompt_logps: TokenLogps | None = None
