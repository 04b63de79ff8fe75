"""What a stage gained and lost: the same items before and after, with intervals."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rung.evals.ladder import Evaluation, Ladder
from rung.evals.stats import Estimate, bootstrap_ratio, paired_difference
from rung.evals.tally import compare, is_made_up, is_real, names, pair_items
from rung.store.artefact import Artefact


@dataclass(frozen=True)
class Change:
    """A figure before and after a stage, and the paired difference with its interval.

    Example: Change("false claims about made-up functions", 0.7, 0.2, Estimate(-0.5, ...), False,
    "percent")
    """

    label: str
    before: float
    after: float
    difference: Estimate
    higher_is_better: bool
    unit: str

    @property
    def certain(self) -> bool:
        """Whether the interval of the difference leaves out 0."""
        return self.difference.low > 0 or self.difference.high < 0

    @property
    def better(self) -> bool:
        return (self.after > self.before) == self.higher_is_better


def changes(
    ladder: Ladder, before: Evaluation | None, after: Evaluation | None, *, seed: int = 0
) -> list[Change]:
    """All figures that both evaluations have, paired by item."""
    if before is None or after is None:
        return []
    found = []
    shared = before.result.get("likelihood", {}).keys() & after.result.get("likelihood", {}).keys()
    for corpus in sorted(shared, key=ladder.name):
        found += _text_change(ladder, before, after, corpus, seed=seed)
    return found + _answer_changes(before, after, seed=seed)


def bits_difference(
    before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]], *, seed: int
) -> Estimate | None:
    """after - before in bits per byte over the documents both measured; None without any."""
    shared = sorted(before.keys() & after.keys())
    if not shared:
        return None
    gap = np.array([after[key]["bits"] - before[key]["bits"] for key in shared])
    sizes = np.array([after[key]["bytes"] for key in shared], dtype=np.float64)
    return bootstrap_ratio(gap, sizes, seed=seed)


def _text_change(
    ladder: Ladder, before: Evaluation, after: Evaluation, corpus: str, *, seed: int
) -> list[Change]:
    gap = bits_difference(before.text_items(corpus), after.text_items(corpus), seed=seed)
    old, new = before.bpb(corpus), after.bpb(corpus)
    if gap is None or old is None or new is None:
        return []
    label = f"bits per byte on {ladder.name(corpus)}"
    return [Change(label, old, new, gap, False, "bits")]


_QUESTIONS = (
    ("answers that stop", "stopped", lambda item: True, True, False),
    ("agreement with the documentation", "rouge_l", is_real, True, False),
    ("noise-free utility", "utility", lambda item: True, True, False),
    ("claims about made-up functions", "admits", is_made_up, False, True),
    ("refusals of real functions", "admits", is_real, False, False),
)
"""label, key, which items, whether higher is better, whether the key is turned round"""


def _answer_changes(before: Evaluation, after: Evaluation, *, seed: int) -> list[Change]:
    found = []
    pairs = pair_items(after.answers, before.answers)
    for label, key, chosen, higher, turned in _QUESTIONS:
        some = [pair for pair in pairs if chosen(pair[0])]
        if not some:
            continue
        new, old = (
            [1.0 - float(pair[side][key]) if turned else float(pair[side][key]) for pair in some]
            for side in (0, 1)
        )
        gap = paired_difference(new, old, clusters=names([a for a, _ in some]), seed=seed)
        unit = "share" if key in ("rouge_l", "utility") else "percent"
        found.append(Change(label, float(np.mean(old)), float(np.mean(new)), gap, higher, unit))
    return found


def versus_parent(ladder: Ladder, model: Artefact, *, seed: int = 0) -> dict[str, Any]:
    """A model against the one it started from, on the same questions; {} when not measured.

    The evaluation's own comparison is used when its baseline is that model; otherwise the items
    of the two evaluations are paired here. Either way `kl` may be missing.
    """
    after = ladder.evaluation(model)
    if after is None:
        return {}
    own: dict[str, Any] = after.result.get("versus_baseline", {})
    if own.get("baseline") == model.parents.get("model") and "win_rate" in own:
        return own
    before = ladder.evaluation(ladder.parent(model, "model"))
    return compare(after.answers, before.answers, seed=seed) if before is not None else {}
