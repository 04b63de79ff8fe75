"""The health panel of policy training: names what is wrong, in words, and says when to stop."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Finding:
    """One fault: "negative_kl", the value that shows it, its limit, and what to do about it."""

    name: str
    value: float
    limit: float
    advice: str

    def sentence(self) -> str:
        return f"{self.name}: {self.value:.3g} (limit {self.limit:.3g}); {self.advice}"


@dataclass(frozen=True)
class Rule:
    """A reading that is unhealthy above `high` or below `low`, from `after` iterations on."""

    name: str
    reading: str
    advice: str
    low: float = -math.inf
    high: float = math.inf
    after: int = 0


RULES = (
    Rule(
        "negative_kl",
        "objective/kl",
        "sampling and training disagree on the policy: sample at temperature 1 without top-k/top-p",
        low=-0.5,
    ),
    Rule(
        "clip_fraction_high",
        "policy/clipfrac_avg",
        "updates are too large: lower the learning rate or the epochs",
        high=0.3,
    ),
    Rule(
        "value_explains_nothing",
        "val/explained_variance",
        "the critic is no better than a constant: raise its learning rate",
        low=0.0,
        after=5,
    ),
    Rule(
        "length_growth",
        "health/length_ratio",
        "answers grow against the first rollout: watch reward against length",
        high=1.5,
    ),
    Rule(
        "length_collapse",
        "health/length_ratio",
        "answers shrink against the first rollout: is the short answer the right one?",
        low=0.5,
    ),
    Rule(
        "entropy_collapse",
        "health/entropy_ratio",
        "the policy hardly explores any more: raise the KL coefficient or stop earlier",
        low=0.2,
    ),
    Rule(
        "reward_follows_length",
        "health/reward_length_correlation",
        "the reward model pays for length: centre it or add comparisons of like lengths",
        high=0.6,
    ),
    Rule(
        "few_answers_stop",
        "health/stop_rate",
        "answers are cut at the limit: raise max_new_tokens or the missing-stop penalty",
        low=0.5,
    ),
    Rule(
        "groups_without_signal",
        "frac_reward_zero_std",
        "most groups have equal rewards: sample hotter or choose harder prompts",
        high=0.6,
    ),
)


def examine(readings: Mapping[str, float], iteration: int) -> list[Finding]:
    """What is wrong in these readings; a reading that is absent is not judged."""
    findings = []
    for rule in RULES:
        value = readings.get(rule.reading)
        if value is None or iteration < rule.after:
            continue
        if not value >= rule.low or not value <= rule.high:  # NaN is unhealthy, too
            limit = rule.low if not value >= rule.low else rule.high
            findings.append(Finding(rule.name, value, limit, rule.advice))
    return findings


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson correlation; 0 where one side does not vary."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


@dataclass
class StopRule:
    """KL above `limit` (nats per answer) in `patience` rollouts one after the other means stop.

    Pure function of the KLs seen, so a resumed run stops at the same iteration.
    """

    limit: float
    patience: int
    over: int = 0

    def update(self, kl: float) -> bool:
        """Takes the KL of one rollout; True when it is time to stop."""
        self.over = 0 if self.healthy(kl) else self.over + 1
        return self.over >= self.patience

    def healthy(self, kl: float) -> bool:
        """Whether the weights that gave this KL are worth going back to."""
        return kl <= self.limit  # False for NaN
