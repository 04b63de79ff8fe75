"""How good a reward model is on judged answers it never saw. Numpy only.

A *pair* is (score of the preferred answer, score of the other, prompt index); pairs of one prompt
are not independent, so intervals resample prompts.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pairs:
    """Scores of the preferred answers [P], of the others [P], and the prompt of each pair [P]."""

    winner: np.ndarray
    loser: np.ndarray
    prompt: np.ndarray

    def __len__(self) -> int:
        return len(self.winner)


def ranked_pairs(ranks: np.ndarray) -> np.ndarray:
    """(better, worse) indices [P, 2] of all strictly ordered answers; a lower rank is better."""
    return np.argwhere(ranks[:, None] < ranks[None, :])


def collect_pairs(scores: list[np.ndarray], ranks: list[np.ndarray]) -> Pairs:
    """The strictly ordered pairs of several rankings, with the scores of one scorer."""
    winner, loser, prompt = [], [], []
    for index, (values, order) in enumerate(zip(scores, ranks, strict=True)):
        pairs = ranked_pairs(np.asarray(order))
        winner.append(np.asarray(values, dtype=float)[pairs[:, 0]])
        loser.append(np.asarray(values, dtype=float)[pairs[:, 1]])
        prompt.append(np.full(len(pairs), index))
    if not winner:
        return Pairs(np.empty(0), np.empty(0), np.empty(0, dtype=int))
    return Pairs(np.concatenate(winner), np.concatenate(loser), np.concatenate(prompt))


def agreement(pairs: Pairs) -> np.ndarray:
    """1 where the scorer prefers the same answer, 0 where it does not, 1/2 where it ties: [P]."""
    return (np.sign(pairs.winner - pairs.loser) + 1) / 2


def accuracy(pairs: Pairs, *, seed: int = 0, num_resamples: int = 2000) -> dict[str, float]:
    """{"value", "low", "high", "n"}: share of pairs ordered rightly, 95 % bootstrap interval."""
    hits = agreement(pairs)
    if not len(hits):
        return {"value": float("nan"), "low": float("nan"), "high": float("nan"), "n": 0}
    _, index = np.unique(pairs.prompt, return_inverse=True)
    right = np.bincount(index, weights=hits)
    count = np.bincount(index).astype(float)
    draws = np.random.default_rng(seed).integers(len(count), size=(num_resamples, len(count)))
    shares = right[draws].sum(axis=1) / count[draws].sum(axis=1)
    low, high = np.quantile(shares, [0.025, 0.975])
    return {"value": float(hits.mean()), "low": float(low), "high": float(high), "n": len(hits)}


def calibration(pairs: Pairs, *, num_bins: int = 10) -> dict[str, object]:
    """Promised against kept confidence: {"ece", "bins": [{"expected", "observed", "n"}, ...]}.

    The confidence of a pair is sigmoid(|difference of raw scores|), in [1/2, 1]; ECE is the mean
    gap weighted by bin counts (Guo et al. 2017, equation 3).
    """
    confidence = 1 / (1 + np.exp(-np.abs(pairs.winner - pairs.loser)))
    hits = agreement(pairs)
    place = np.minimum(((confidence - 0.5) * 2 * num_bins).astype(int), num_bins - 1)
    bins, gap = [], 0.0
    for index in range(num_bins):
        inside = place == index
        n = int(inside.sum())
        if n:
            expected, observed = float(confidence[inside].mean()), float(hits[inside].mean())
            bins.append({"expected": expected, "observed": observed, "n": n})
            gap += n * abs(expected - observed)
    return {"ece": gap / max(len(hits), 1), "bins": bins}


def way_to_ceiling(value: float, ceiling: float) -> float:
    """How far from chance (0) to the noise ceiling (1) an accuracy lies."""
    return (value - 0.5) / (ceiling - 0.5) if ceiling > 0.5 else float("nan")
