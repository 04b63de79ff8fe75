"""Which answers are desirable: labels that people gave, else what rankings say of each answer.

One answer is judged at a time here, so that thumbs, flags, ratings and rankings train alike.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from rung.feedback.schema import Ranking

Rule = Literal["best_worst", "above_below", "ratings"]
Labels = list[bool | None]
"""One per answer: True = desirable, False = undesirable, None = not used."""


def label_answers(
    records: Sequence[Ranking], *, rule: Rule, rating_threshold: float | None = None
) -> list[Ranking]:
    """`records` cut to the answers that have a label, each with `labels`; others are left out.

    A label that somebody gave always holds. Where nobody did, a flagged answer is undesirable, and
    of the rest `rule` decides: best_worst takes the best and the worst rank, above_below all ranks
    but the middle one, ratings compares with the threshold (None: the middle of all ratings).
    """
    if rating_threshold is None:
        ratings = [value for record in records for value in record.ratings or ()]
        rating_threshold = (min(ratings) + max(ratings)) / 2 if ratings else 0.0
    found = []
    for record in records:
        if record.labels is not None:
            labels = list(record.labels)
        else:
            labels = _unless_flagged(record, RULES[rule](record, rating_threshold))
        kept = [index for index, label in enumerate(labels) if label is not None]
        if kept:
            found.append(_only(record, kept, labels))
    return found


def _best_worst(record: Ranking, threshold: float) -> Labels:
    best, worst = min(record.ranks), max(record.ranks)
    if best == worst:
        return [None] * len(record.ranks)
    return [True if r == best else False if r == worst else None for r in record.ranks]


def _above_below(record: Ranking, threshold: float) -> Labels:
    middle = (min(record.ranks) + max(record.ranks)) / 2
    return [None if r == middle else r < middle for r in record.ranks]


def _by_rating(record: Ranking, threshold: float) -> Labels:
    if record.ratings is None:
        return [None] * len(record.ranks)
    return [rating >= threshold for rating in record.ratings]


RULES: Mapping[Rule, Callable[[Ranking, float], Labels]] = {
    "best_worst": _best_worst,
    "above_below": _above_below,
    "ratings": _by_rating,
}


def _unless_flagged(record: Ranking, labels: Labels) -> Labels:
    return [False if flags else label for flags, label in zip(record.flags, labels, strict=True)]


def _only(record: Ranking, kept: Sequence[int], labels: Labels) -> Ranking:
    """The ranking without the answers that are not used; ranks keep their values."""
    return replace(
        record,
        answers=[record.answers[i] for i in kept],
        stopped=[record.stopped[i] for i in kept],
        ranks=[record.ranks[i] for i in kept],
        flags=[record.flags[i] for i in kept],
        ratings=None if record.ratings is None else [record.ratings[i] for i in kept],
        labels=[labels[i] for i in kept],
        margin=None,
    )
