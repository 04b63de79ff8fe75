"""Mixing weights: chosen shares come out, rows are used as often as allowed and no more."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rung.errors import DataError
from rung.tasks.mix import count_formats, mix_rows


def rows(**counts):
    return [
        {
            "id": f"files/{name}{i}",
            "format": name,
            "messages": [
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": "x" * (3 if name == "long" else 1)},
            ],
        }
        for name, count in counts.items()
        for i in range(count)
    ]


def test_shares_by_hand():
    # 1:3 of 10 and 60 rows: the 10 are a quarter, so 30 of the 60
    mixed = mix_rows(rows(a=10, b=60), {"a": 1, "b": 3}, repeat=1, seed=0)
    assert Counter(row["format"] for row in mixed) == {"a": 10, "b": 30}
    # with each row up to three times: 30 of a, so 90 of b, which are 60 and 30 a second time
    mixed = mix_rows(rows(a=10, b=60), {"a": 1, "b": 3}, repeat=3, seed=0)
    assert Counter(row["format"] for row in mixed) == {"a": 30, "b": 90}
    uses = Counter(row["id"].partition("#")[0] for row in mixed)
    assert Counter(uses.values()) == {3: 10, 2: 30, 1: 30}
    assert len({row["id"] for row in mixed}) == len(mixed)


def test_a_weight_of_zero_leaves_a_format_out():
    mixed = mix_rows(rows(a=5, b=5, c=5), {"a": 1, "b": 1, "c": 0}, repeat=1, seed=0)
    assert Counter(row["format"] for row in mixed) == {"a": 5, "b": 5}


def test_new_rows_move_few_others():
    before = {row["id"] for row in mix_rows(rows(a=10, b=50), {"a": 1, "b": 1}, repeat=1, seed=0)}
    after = {row["id"] for row in mix_rows(rows(a=10, b=55), {"a": 1, "b": 1}, repeat=1, seed=0)}
    assert len(before & after) >= 17
    other = {row["id"] for row in mix_rows(rows(a=10, b=50), {"a": 1, "b": 1}, repeat=1, seed=1)}
    assert other != before


def test_counts_are_of_rows_and_of_what_is_trained_on():
    # 2 rows of 3 characters and 2 of 1: half the rows, three quarters of the answers
    counts = count_formats(rows(long=2, short=2))
    assert counts["long"] == {"rows": 2, "share": 0.5, "answer_share": 0.75}


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.05, 10), min_size=4, max_size=4),
    repeat=st.integers(1, 4),
)
def test_shares_are_kept_and_no_row_is_used_too_often(counts, weights, repeat):
    given_rows = rows(**{f"f{i}": count for i, count in enumerate(counts)})
    wanted = {f"f{i}": weights[i] for i in range(len(counts))}
    mixed = mix_rows(given_rows, wanted, repeat=repeat, seed=0)
    realised = Counter(row["format"] for row in mixed)
    uses = Counter(row["id"].partition("#")[0] for row in mixed)
    assert max(uses.values()) <= repeat
    for name, weight in wanted.items():
        share = weight / sum(wanted.values())
        # rounding moves each format by half a row at most
        assert abs(realised[name] - share * len(mixed)) <= 0.5 + share * len(wanted) / 2
    full = [name for i, name in enumerate(wanted) if realised[name] == repeat * counts[i]]
    assert full, "the scarcest format sets the size"


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1, "bb": 1}, r"no row to train on has the format 'bb'"),
        ({"a": 1}, r"format 'b' \(5 rows\) has no weight; give each of a, b one"),
        ({"a": 1, "b": -1}, "numbers from 0"),
        ({"a": 0, "b": 0}, "at least one above 0"),
    ],
)
def test_wrong_weights_are_named(weights, message):
    with pytest.raises(DataError, match=message):
        mix_rows(rows(a=5, b=5), weights, repeat=1, seed=0)
