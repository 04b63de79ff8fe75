"""Labels of answers: people's own first, flags next, then what a ranking says, by each rule."""

import pytest

from rung.feedback.labels import label_answers
from rung.feedback.schema import Ranking


def record(ranks, *, flags=None, ratings=None, labels=None):
    num = len(ranks)
    return Ranking(
        id="x",
        prompt=[{"role": "user", "content": "Hi"}],
        answers=[f"answer {index}" for index in range(num)],
        stopped=[True] * num,
        ranks=ranks,
        flags=flags or [[] for _ in range(num)],
        ratings=ratings,
        labels=labels,
    )


def labelled(given, rule="best_worst", **options):
    return {
        answer: label
        for found in label_answers([given], rule=rule, **options)
        for answer, label in zip(found.answers, found.labels, strict=True)
    }


@pytest.mark.parametrize(
    ("rule", "labels"),
    [
        ("best_worst", [True, None, False, True, None]),  # ranks 1 and 4
        ("above_below", [True, True, False, True, False]),  # the middle is 2.5
    ],
)
def test_ranks_by_each_rule(rule, labels) -> None:
    found = labelled(record([1, 2, 4, 1, 3]), rule)
    assert found == {f"answer {i}": label for i, label in enumerate(labels) if label is not None}


def test_the_middle_rank_is_left_out() -> None:
    assert labelled(record([1, 2, 3]), "above_below") == {"answer 0": True, "answer 2": False}


def test_ratings_by_a_threshold_or_the_middle_of_all() -> None:
    given = record([1, 2, 3], ratings=[5, 3, 1])
    assert list(labelled(given, "ratings").values()) == [True, True, False]  # middle: 3
    found = labelled(given, "ratings", rating_threshold=4)
    assert list(found.values()) == [True, False, False]
    assert labelled(record([1, 2]), "ratings") == {}


def test_labels_of_people_hold_whatever_ranks_and_flags_say() -> None:
    given = record([1, 2], labels=[False, None], flags=[[], ["harmful"]])
    assert labelled(given) == {"answer 0": False}
    single = record([1], labels=[True])
    (found,) = label_answers([single], rule="best_worst")
    assert (found.answers, found.labels, found.ranks) == (["answer 0"], [True], [1])


def test_a_flagged_answer_is_undesirable_though_it_ranks_first() -> None:
    given = record([1, 2, 3], flags=[["misleading"], [], []])
    assert labelled(given) == {"answer 0": False, "answer 2": False}


def test_ties_say_nothing() -> None:
    assert label_answers([record([1, 1])], rule="best_worst") == []
    assert label_answers([record([2, 2])], rule="above_below") == []
