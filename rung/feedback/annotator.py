"""The simulated annotator: ranks by a known utility plus noise of a stated rate.

It stands in for people in a run without people, and is named "simulated" wherever it appears.
Error model: what it perceives of an answer is utility + Gaussian noise; answers that it perceives
closer than `tie_margin` are ties; each flag is missed, and each misplaced flag raised, at a rate.
Because the utility is known, so is the noise ceiling: how often even a perfect scorer would agree.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from rung.config import Config
from rung.feedback.rankings import pairs
from rung.feedback.schema import Ranking


class AnnotatorConfig(Config):
    """How good the simulated annotator is."""

    name: str = Field(default="simulated-1", description="annotator id in every row it writes")
    noise_std: float = Field(default=0.1, ge=0, description="std of the noise on utility (0 to 1)")
    tie_margin: float = Field(
        default=0.03, ge=0, description="perceived difference that counts as a tie"
    )
    flag_error: float = Field(default=0.05, ge=0, le=1, description="chance that a flag is wrong")


@dataclass(frozen=True)
class Judgement:
    """ranks: lower is better, equal is a tie. flags: one tuple per answer."""

    ranks: tuple[int, ...]
    flags: tuple[tuple[str, ...], ...]


class SimulatedAnnotator:
    """Ranks answers whose utility is known; the noise is a pure function of (seed, key)."""

    kind = "simulated"

    def __init__(self, config: AnnotatorConfig, *, seed: int) -> None:
        self.config = config
        self.seed = seed

    def judge(
        self, key: str, utilities: Sequence[float], flags: Sequence[Sequence[str]]
    ) -> Judgement:
        """A noisy judgement. The same key gives the same one; another key a fresh look."""
        draw = random.Random(f"{self.seed}/{self.config.name}/{key}")
        seen = [u + draw.gauss(0.0, self.config.noise_std) for u in utilities]
        return Judgement(
            ranks=rank_with_ties(seen, margin=self.config.tie_margin),
            flags=tuple(self._flags(true, draw) for true in flags),
        )

    def _flags(self, true: Sequence[str], draw: random.Random) -> tuple[str, ...]:
        raised = []
        for flag in ("misleading", "unhelpful"):  # nothing it grades can be harmful
            wrong = draw.random() < self.config.flag_error
            if (flag in true) != wrong:
                raised.append(flag)
        return tuple(raised)


def rank_with_ties(scores: Sequence[float], *, margin: float) -> tuple[int, ...]:
    """Rank 1 for the highest score; scores within `margin` of the best of their rank share it.

    Ranks count ranks, not answers: 1, 1, 2. Comparing with the best of the rank keeps ties from
    chaining (0.0, 0.02, 0.04 with margin 0.03 are not all one tie).
    """
    ranks = [0] * len(scores)
    rank, best = 0, math.inf
    for index in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if best - scores[index] > margin or rank == 0:
            rank, best = rank + 1, scores[index]
        ranks[index] = rank
    return tuple(ranks)


@dataclass(frozen=True)
class Agreement:
    """Share of pairs on which two orders agree, and how many pairs that is."""

    value: float
    num_pairs: int


def noise_ceiling(records: Sequence[Ranking]) -> Agreement:
    """How often the noise-free utility agrees with the noisy pairs of these very records.

    That is the most a perfect scorer could reach on them. Answers of equal utility count half:
    nobody can know which way the noise fell. Records without `source.utilities` (people's) do not
    count; num_pairs is 0 when there are none.
    """
    agree, total = 0.0, 0
    for record in records:
        utilities = record.source.get("utilities")
        if utilities is None:
            continue
        for winner, loser in pairs(record):
            difference = utilities[winner] - utilities[loser]
            agree += 0.5 if difference == 0 else float(difference > 0)
            total += 1
    return Agreement(agree / total if total else 0.0, total)


def expected_agreement(difference: float, *, noise_std: float, tie_margin: float) -> float:
    """Chance that a noisy pair that is no tie has the right order, from the error model.

    The difference of two noisy looks is normal with std noise_std * sqrt(2); it is a tie within
    +- tie_margin. `difference` is the absolute difference of utility.
    """
    if noise_std == 0:
        return 0.5 if difference == 0 else 1.0
    scale = noise_std * math.sqrt(2)
    right = _normal_cdf((difference - tie_margin) / scale)
    wrong = _normal_cdf((-difference - tie_margin) / scale)
    return right / (right + wrong) if right + wrong > 0 else 0.5


def expected_ceiling(records: Sequence[Ranking], config: AnnotatorConfig) -> float:
    """The noise ceiling that the error model predicts for these pairs: the mean of their chances.

    A check on `noise_ceiling`, which counts; they differ by sampling error and by ranks that share
    a tie through a third answer.
    """
    chances = [
        expected_agreement(
            abs(record.source["utilities"][i] - record.source["utilities"][j]),
            noise_std=config.noise_std,
            tie_margin=config.tie_margin,
        )
        for record in records
        if record.source.get("utilities") is not None
        for i, j in pairs(record)
    ]
    return sum(chances) / len(chances) if chances else 0.0


def retest_agreement(first: Sequence[Ranking], second: Sequence[Ranking]) -> Agreement:
    """Test-retest: of the pairs ordered both times, the share ordered the same way."""
    agree, total = 0, 0
    for a, b in zip(first, second, strict=True):
        both = {frozenset(pair): pair for pair in pairs(b)}
        for pair in pairs(a):
            again = both.get(frozenset(pair))
            if again is not None:
                agree += again == pair
                total += 1
    return Agreement(agree / total if total else 0.0, total)


def _normal_cdf(value: float) -> float:
    return 0.5 * math.erfc(-value / math.sqrt(2))
