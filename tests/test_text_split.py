"""Splitting by group: shares, stability, no group in two parts."""

from hypothesis import given
from hypothesis import strategies as st

from rung.text.split import assign_parts, fill_budget

SIZES = st.dictionaries(st.text(min_size=1, max_size=8), st.integers(1, 10_000), max_size=60)


@given(SIZES, st.integers(0, 5))
def test_parts_are_a_partition_with_bounded_shares(sizes, seed):
    parts = assign_parts(sizes, heldout=0.1, text_only=0.2, seed=seed)
    assert parts.keys() == sizes.keys()
    total = sum(sizes.values())
    for part, share in (("nowhere", 0.1), ("text_only", 0.2)):
        taken = [sizes[name] for name in sizes if parts[name] == part]
        assert len(taken) <= 1 or sum(taken) <= 1.5 * share * total
    if len(sizes) > 1:
        assert "nowhere" in parts.values()
        assert set(parts.values()) != {"nowhere"}
    if len(sizes) == 1:
        assert set(parts.values()) == {"instruct"}


def test_shares_are_met_with_many_groups():
    sizes = {f"g{i}": 100 for i in range(1000)}
    parts = list(assign_parts(sizes, heldout=0.05, text_only=0.15, seed=0).values())
    assert [parts.count(p) for p in ("nowhere", "text_only", "instruct")] == [50, 150, 800]


def test_a_huge_group_stays_in_training():
    sizes = {"huge": 100_000} | {f"g{i}": 10 for i in range(20)}
    for seed in range(20):
        assert assign_parts(sizes, heldout=0.05, text_only=0.15, seed=seed)["huge"] == "instruct"


def test_zero_shares_hold_nothing_out():
    assert set(assign_parts({"a": 1, "b": 2}, heldout=0, text_only=0, seed=0).values()) == {
        "instruct"
    }


def test_a_new_group_moves_few_others():
    sizes = {f"g{i}": 100 for i in range(400)}
    before = assign_parts(sizes, heldout=0.1, text_only=0.1, seed=0)
    after = assign_parts(sizes | {"new": 100}, heldout=0.1, text_only=0.1, seed=0)
    assert sum(before[name] != after[name] for name in sizes) <= 4


def test_seed_changes_the_draw():
    sizes = {f"g{i}": 100 for i in range(100)}
    draws = [assign_parts(sizes, heldout=0.1, text_only=0.1, seed=s) for s in (0, 1)]
    assert draws[0] != draws[1]


@given(SIZES, st.integers(0, 50_000))
def test_budget_is_kept_by_whole_groups(sizes, budget):
    kept = fill_budget(sizes, budget=budget, seed=0)
    assert sum(sizes[name] for name in kept) <= budget
    left_out = [size for name, size in sizes.items() if name not in kept]
    assert all(sum(sizes[n] for n in kept) + size > budget for size in left_out)
