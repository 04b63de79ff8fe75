"""Rankings: checked rows, splits by prompt, pairs and ties, a round trip without loss."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rung.errors import DataError
from rung.feedback.rankings import (
    count_rankings,
    load_rankings,
    pairs,
    split_by_prompt,
    ties,
    write_rankings,
)
from rung.feedback.schema import Ranking, parse_ranking

ROW = {
    "id": "r1",
    "prompt": [{"role": "user", "content": "Hi"}],
    "answers": ["a", "b", "c"],
    "ranks": [2, 1, 2],
}


def ranking(*ranks: int, prompt: str = "Hi", **fields) -> Ranking:
    return Ranking(
        id=f"{prompt}-{ranks}",
        prompt=[{"role": "user", "content": prompt}],
        answers=[f"answer {i}" for i in range(len(ranks))],
        stopped=[True] * len(ranks),
        ranks=list(ranks),
        flags=[[] for _ in ranks],
        **fields,
    )


def test_pairs_and_ties_by_hand():
    record = ranking(2, 1, 2)  # answer 1 beats 0 and 2, which tie
    assert pairs(record) == [(1, 0), (1, 2)]
    assert ties(record) == [(0, 2)]


@given(st.lists(st.integers(1, 4), min_size=2, max_size=6))
def test_every_two_answers_are_a_pair_or_a_tie(ranks):
    record = ranking(*ranks)
    num = len(ranks)
    both = [frozenset(p) for p in pairs(record)] + [frozenset(t) for t in ties(record)]
    assert len(both) == len(set(both)) == num * (num - 1) // 2
    assert all(ranks[winner] < ranks[loser] for winner, loser in pairs(record))


def test_a_prompt_is_on_one_side_and_stays_there():
    records = [ranking(1, 2, prompt=f"p{i % 150}") for i in range(300)]
    train, heldout = split_by_prompt(records, heldout_fraction=0.2, seed=0)
    assert len(train) + len(heldout) == 300
    sides = [{r.prompt[0]["content"] for r in side} for side in (train, heldout)]
    assert not sides[0] & sides[1]
    assert 10 < len(sides[1]) < 50
    _, fewer = split_by_prompt(records[:100], heldout_fraction=0.2, seed=0)
    assert {r.prompt[0]["content"] for r in fewer} <= sides[1]
    _, other = split_by_prompt(records, heldout_fraction=0.2, seed=1)
    assert {r.prompt[0]["content"] for r in other} != sides[1]


def test_write_and_load_is_without_loss(tmp_path):
    records = [
        ranking(1, 2, ratings=[5, 1.5], annotator="ann", source={"utilities": [0.9, 0.1]}),
        dataclasses.replace(ranking(1, 1, 2), kind="simulated", stopped=[True, False, True]),
        dataclasses.replace(ranking(2, 1), flags=[["misleading", "harmful"], []]),
    ]
    write_rankings(tmp_path, records)
    assert load_rankings(tmp_path) == records
    before = (tmp_path / "rankings.jsonl").read_bytes()
    write_rankings(tmp_path, load_rankings(tmp_path))
    assert (tmp_path / "rankings.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": ["a"], "ranks": [1]}, "1 answer cannot be ranked"),
        ({"ranks": [1, 2]}, "3 answers need 3 ranks, found 2"),
        ({"ranks": [1, 2, "3"]}, "ranks are whole numbers"),
        ({"ranks": [True, False, True]}, "ranks are whole numbers"),
        ({"flags": [[], [], ["rude"]]}, "unknown flag 'rude'; known: misleading"),
        ({"ratings": [1]}, "3 answers need 3 ratings"),
        ({"kind": "robot"}, "kind 'robot' is not one of"),
        ({"answers": "a"}, "answers are a list of texts"),
        ({"prompt": [{"role": "assistant", "content": "Hi"}]}, "expected 'user'"),
    ],
)
def test_a_wrong_row_is_named(change, message):
    assert parse_ranking(ROW, where="x:1").ranks == [2, 1, 2]
    with pytest.raises(DataError, match=f"^x:1: .*{message}"):
        parse_ranking({**ROW, **change}, where="x:1")


def test_no_rankings_is_an_error(tmp_path):
    (tmp_path / "rankings.jsonl").write_text("")
    with pytest.raises(DataError, match="no rankings"):
        load_rankings(tmp_path)


def test_counts_by_hand():
    records = [
        ranking(1, 2),
        dataclasses.replace(ranking(1, 1, 2), flags=[[], ["unhelpful"], []]),
        ranking(1, 2, prompt="other", annotator="ann"),
    ]
    counts = count_rankings(records)
    assert (counts["rankings"], counts["prompts"], counts["answers"]) == (3, 2, 7)
    assert (counts["pairs"], counts["ties"], counts["flags"]) == (4, 1, {"unhelpful": 1})
    assert counts["annotators"] == {"ann": 1, "unknown": 2}
