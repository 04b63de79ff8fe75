"""How good a classifier is on texts it never saw, and how far its confidence can be trusted.

Numpy only. N texts, C labels. Intervals are 95 %: Wilson's for accuracy, else a bootstrap over
texts.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

NUM_BINS = 10
RESAMPLES = 2000
_SPREAD = 0.5  # of the logarithm of a temperature, before any text is seen
_CELLS = 4_000_000  # counts drawn at once: bounds the memory of a bootstrap


def confusion(truth: np.ndarray, chosen: np.ndarray, num_labels: int) -> np.ndarray:
    """Counts int64 [C, C]: rows are the true labels, columns the chosen ones."""
    flat = truth.astype(np.int64) * num_labels + chosen
    return np.bincount(flat, minlength=num_labels**2).reshape(num_labels, num_labels)


def f1_of(hits: np.ndarray, chosen: np.ndarray, true: np.ndarray) -> np.ndarray:
    """2 hits / (chosen + true), elementwise; 0 where neither was ever chosen nor true."""
    total = chosen + true
    return np.where(total > 0, 2 * hits / np.maximum(total, 1), 0.0)


def macro_f1(matrices: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Mean F1 of matrices [..., C, C] over the labels of `present` [C] (1 = has held-out texts)."""
    hits = np.diagonal(matrices, axis1=-2, axis2=-1)
    f1 = f1_of(hits, matrices.sum(-2), matrices.sum(-1))
    return f1[..., present].mean(-1)


def wilson(successes: int, n: int) -> dict[str, float]:
    """A share with Wilson's score interval (1927): sensible at 0, at n and for small n."""
    z = 1.959963984540054
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return _estimate(share, max(0.0, centre - half), min(1.0, centre + half), n)


def _estimate(value: float, low: float, high: float, n: int) -> dict[str, float]:
    rounded = {"value": value, "low": low, "high": high}
    return {name: round(float(number), 6) for name, number in rounded.items()} | {"n": n}


def single_label(probabilities: np.ndarray, truth: np.ndarray, *, seed: int) -> dict[str, Any]:
    """Figures of a classifier that gives one label. probabilities [N, C], truth int [N]."""
    num, num_labels = probabilities.shape
    chosen = probabilities.argmax(1)
    matrix = confusion(truth, chosen, num_labels)
    present = matrix.sum(1) > 0
    # texts are exchangeable, so a resample of texts is a multinomial draw of the cells
    draws = np.random.default_rng(seed).multinomial(num, matrix.ravel() / num, size=RESAMPLES)
    spread = macro_f1(draws.reshape(-1, num_labels, num_labels), present)
    low, high = np.quantile(spread, [0.025, 0.975])
    right = int(np.trace(matrix))
    return {
        "accuracy": wilson(right, num),
        "macro_f1": _estimate(float(macro_f1(matrix, present)), low, high, num),
        "commonest_label_accuracy": round(float(matrix.sum(1).max() / num), 6),
        "confusion": matrix.tolist(),
        "per_label": _per_label(np.diagonal(matrix), matrix.sum(0), matrix.sum(1)),
        "log_loss": round(float(-np.log(probabilities[np.arange(num), truth] + 1e-12).mean()), 6),
        "calibration": calibration(probabilities.max(1), chosen == truth),
    }


def multi_label(
    probabilities: np.ndarray, truth: np.ndarray, thresholds: np.ndarray, *, seed: int
) -> dict[str, Any]:
    """Figures of a classifier that decides every label. probabilities, truth (0 or 1) [N, C]."""
    num = len(truth)
    chosen = probabilities >= thresholds
    wanted = truth.astype(bool)
    counts = np.stack([chosen & wanted, chosen, wanted]).astype(np.float64)  # [3, N, C]
    hits, picked, true = counts.sum(1)
    present = true > 0
    micro, macro = [], []
    generator = np.random.default_rng(seed)
    rows = max(1, _CELLS // max(num, 1))
    for start in range(0, RESAMPLES, rows):
        size = min(rows, RESAMPLES - start)
        times = generator.multinomial(num, np.full(num, 1 / num), size=size).astype(np.float64)
        h, p, t = (times @ part for part in counts)
        micro.append(f1_of(h.sum(1), p.sum(1), t.sum(1)))
        macro.append(f1_of(h, p, t)[:, present].mean(1))
    clipped = np.clip(probabilities, 1e-12, 1 - 1e-12)
    loss = -np.where(wanted, np.log(clipped), np.log1p(-clipped)).mean()
    return {
        "micro_f1": _between(f1_of(hits.sum(), picked.sum(), true.sum()), micro, num),
        "macro_f1": _between(f1_of(hits, picked, true)[present].mean(), macro, num),
        "all_labels_right": wilson(int((chosen == wanted).all(1).sum()), num),
        "per_label": _per_label(hits, picked, true),
        "log_loss": round(float(loss), 6),
        "calibration": calibration(probabilities.ravel(), wanted.ravel()),
    }


def _between(value: Any, resampled: Sequence[np.ndarray], n: int) -> dict[str, float]:
    low, high = np.quantile(np.concatenate(resampled), [0.025, 0.975])
    return _estimate(float(value), low, high, n)


def _per_label(
    hits: np.ndarray, chosen: np.ndarray, true: np.ndarray
) -> list[dict[str, float | None]]:
    """Precision, recall, F1 and support of each label; None where nothing was chosen or true."""

    def share(part: float, whole: float) -> float | None:
        return round(float(part / whole), 6) if whole else None

    return [
        {
            "precision": share(h, c),
            "recall": share(h, t),
            "f1": share(2 * h, c + t),
            "support": int(t),
        }
        for h, c, t in zip(hits, chosen, true, strict=True)
    ]


def calibration(confidence: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """Promised against kept confidence: {"ece", "bins": [{"expected", "observed", "n"}, ...]}.

    Ten bins of equal width over [0, 1]; ECE is the mean gap weighted by bin counts (Guo et al.
    2017, equation 3).
    """
    place = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    bins, gap = [], 0.0
    for index in range(NUM_BINS):
        inside = place == index
        n = int(inside.sum())
        if n:
            expected, observed = float(confidence[inside].mean()), float(right[inside].mean())
            bins.append({"expected": round(expected, 6), "observed": round(observed, 6), "n": n})
            gap += n * abs(expected - observed)
    return {"ece": round(gap / max(len(confidence), 1), 6), "bins": bins}


def fit_temperature(logits: np.ndarray, truth: np.ndarray, *, multi_label: bool) -> float:
    """The likeliest temperature (Guo et al. 2017, section 4.2), within [1/20, 20].

    logits [N, C]. truth: label numbers [N], or 0 and 1 [N, C]. Where all of a few texts are right
    the least log loss is at temperature 0, which promises certainty; so log T has a normal prior
    around 0, which hundreds of texts outvote. A golden-section search needs no derivative.
    """
    values = logits.astype(np.float64)

    def loss(log_t: float) -> float:
        cool = values / math.exp(log_t)
        prior = 0.5 * (log_t / _SPREAD) ** 2
        if multi_label:
            return float((np.logaddexp(0, cool) - cool * truth).sum()) + prior
        top = cool.max(1, keepdims=True)
        norm = top[:, 0] + np.log(np.exp(cool - top).sum(1))
        return float((norm - cool[np.arange(len(truth)), truth]).sum()) + prior

    low, high = -math.log(20), math.log(20)
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(60):
        left, right = high - golden * (high - low), low + golden * (high - low)
        if loss(left) <= loss(right):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)


def fit_thresholds(
    probabilities: np.ndarray, truth: np.ndarray, *, least: int = 10
) -> tuple[float, ...]:
    """For each label the threshold of the best F1 on [N, C]; 1/2 where fewer than `least` texts
    have the label: a threshold from a handful of texts is noise."""
    chosen = []
    for column in range(truth.shape[1]):
        p, t = probabilities[:, column], truth[:, column].astype(float)
        if t.sum() < least:
            chosen.append(0.5)
            continue
        order = np.argsort(-p, kind="stable")
        hits = np.cumsum(t[order])
        f1 = f1_of(hits, np.arange(1, len(p) + 1), t.sum())
        # a cut between two equal probabilities does not exist
        ends = np.append(np.diff(p[order]) < 0, True)
        best = int(np.argmax(np.where(ends, f1, -1.0)))
        below = p[order][best + 1] if best + 1 < len(p) else 0.0
        chosen.append(float((p[order][best] + below) / 2))
    return tuple(round(float(value), 6) for value in chosen)


def main_figures(figures: Mapping[str, Any]) -> dict[str, float]:
    """The figures for tables: name -> number, intervals as name_low and name_high."""
    found: dict[str, float] = {}
    for name in ("accuracy", "macro_f1", "micro_f1", "all_labels_right"):
        if name in figures:
            found[name] = figures[name]["value"]
            found[f"{name}_low"] = figures[name]["low"]
            found[f"{name}_high"] = figures[name]["high"]
    if "commonest_label_accuracy" in figures:
        found["commonest_label_accuracy"] = figures["commonest_label_accuracy"]
    return found
