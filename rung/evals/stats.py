"""Intervals and paired comparisons for evaluation items: numpy only, every draw seeded.

Items that share a cause (several questions about one function) are clusters: pass `clusters` and
the resampling unit is the cluster, so that ten questions about one function do not count as ten
independent observations (Miller 2024, "Adding error bars to evals").
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES = 10_000
_CELLS = 4_000_000  # indices drawn at once: bounds the memory of a bootstrap to about 100 MB


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval (unless said otherwise) and the number of items behind it.

    Example: Estimate(value=0.62, low=0.55, high=0.69, n=200)
    """

    value: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, float | int]:
        """Plain numbers, rounded to 6 places: far below the noise of any evaluation."""
        return {
            "value": round(self.value, 6),
            "low": round(self.low, 6),
            "high": round(self.high, 6),
            "n": self.n,
        }


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def mean_interval(
    values: Sequence[float] | np.ndarray,
    *,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """Mean with a normal interval from its (clustered) standard error.

    Without clusters the error is s / sqrt(n) with s over n - 1. With clusters it is the usual
    sandwich: the square root of the sum over clusters of squared summed deviations, over n.
    """
    data = np.asarray(values, dtype=np.float64)
    assert len(data), "an interval needs items"
    mean = float(data.mean())
    if clusters is None:
        error = float(data.std(ddof=1) / math.sqrt(len(data))) if len(data) > 1 else math.inf
    else:
        sums = np.bincount(_cluster_index(clusters), weights=data - mean)
        error = float(np.sqrt((sums**2).sum()) / len(data)) if len(sums) > 1 else math.inf
    half = _z(confidence) * error
    return Estimate(mean, mean - half, mean + half, len(data))


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> Estimate:
    """A rate with Wilson's score interval (1927): sensible at 0, at n and for small n."""
    assert n > 0, "a rate needs items"
    assert 0 <= successes <= n
    z = _z(confidence)
    rate = successes / n
    scale = 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / scale
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / scale
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Estimate(rate, low, high, n)


def bootstrap_ratio(
    numerators: Sequence[float] | np.ndarray,
    denominators: Sequence[float] | np.ndarray,
    *,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """sum(numerators) / sum(denominators) with a percentile bootstrap over items or clusters.

    A mean is the ratio to ones; bits per byte is the ratio of bits to bytes over documents.
    """
    top = np.asarray(numerators, dtype=np.float64)
    bottom = np.asarray(denominators, dtype=np.float64)
    assert len(top), "a bootstrap needs items"
    assert len(top) == len(bottom)
    items = len(top)
    value = float(top.sum() / bottom.sum())
    if clusters is not None:
        index = _cluster_index(clusters)
        top = np.bincount(index, weights=top).astype(np.float64)
        bottom = np.bincount(index, weights=bottom).astype(np.float64)
    units = len(top)
    generator = np.random.default_rng(seed)
    ratios = []
    for start in range(0, resamples, max(1, _CELLS // units)):
        rows = min(max(1, _CELLS // units), resamples - start)
        drawn = generator.integers(0, units, size=(rows, units))
        ratios.append(top[drawn].sum(axis=1) / bottom[drawn].sum(axis=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(ratios), [tail, 1 - tail])
    return Estimate(value, float(low), float(high), items)


def bootstrap_mean(
    values: Sequence[float] | np.ndarray,
    *,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Mean with a percentile bootstrap interval."""
    ones = np.ones(len(values))
    return bootstrap_ratio(
        values, ones, clusters=clusters, confidence=confidence, resamples=resamples, seed=seed
    )


def paired_difference(
    after: Sequence[float] | np.ndarray,
    before: Sequence[float] | np.ndarray,
    *,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Estimate:
    """Mean of after - before on the same items; an interval that leaves out 0 is a difference."""
    return bootstrap_mean(np.subtract(after, before), clusters=clusters, seed=seed)


def win_rate(
    ours: Sequence[float] | np.ndarray,
    theirs: Sequence[float] | np.ndarray,
    *,
    tie_margin: float = 0.0,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Estimate:
    """Share of items where ours is better; a difference of at most `tie_margin` counts half.

    When every item has the same outcome a bootstrap has no width, which would claim certainty
    from a handful of items: the interval is then Wilson's over items (or clusters, if given).
    """
    gap = np.subtract(np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64))
    outcomes = np.where(gap > tie_margin, 1.0, np.where(gap < -tie_margin, 0.0, 0.5))
    estimate = bootstrap_mean(outcomes, clusters=clusters, seed=seed)
    if outcomes.min() != outcomes.max() or outcomes[0] == 0.5:
        return estimate
    units = len(set(clusters)) if clusters is not None else len(outcomes)
    sure = wilson(units if outcomes[0] == 1.0 else 0, units)
    return Estimate(estimate.value, sure.low, sure.high, estimate.n)


def mcnemar(after: Sequence[bool], before: Sequence[bool]) -> float:
    """Exact two-sided p-value that two models are right equally often on the same items.

    Only items on which they differ count: under no difference each goes either way by a fair coin.
    """
    gained = sum(a and not b for a, b in zip(after, before, strict=True))
    lost = sum(b and not a for a, b in zip(after, before, strict=True))
    differ = gained + lost
    if differ == 0:
        return 1.0
    tail = sum(math.comb(differ, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**differ)


def _cluster_index(clusters: Sequence[Hashable]) -> np.ndarray:
    """Cluster number per item, numbered by first appearance: no hash order in the result."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(key, len(seen)) for key in clusters], dtype=np.int64)
