"""The layered drawing: lines run to the right, nothing overlaps, no crossing where none is due."""

import re
from collections import defaultdict
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rung.serve.layered import Sizes, _crossings, _neighbours, _ordered, draw

SIZES = Sizes()


@st.composite
def graphs(draw):
    """Any graph without cycles: edges go from lower to higher numbers."""
    count = draw(st.integers(1, 24))
    pairs = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1))
    chosen = draw(st.lists(pairs, max_size=40))
    edges = [(f"n{min(p)}", f"n{max(p)}") for p in chosen if p[0] != p[1]]
    nodes = draw(st.permutations([f"n{i}" for i in range(count)]))
    return nodes, edges


@settings(deadline=None, max_examples=60)
@given(graphs())
def test_boxes_do_not_overlap_and_lines_run_to_the_right(graph):
    nodes, edges = graph
    drawing = draw(nodes, edges)
    assert set(drawing.places) == set(nodes)
    columns = defaultdict(list)
    for x, y in drawing.places.values():
        assert 0 <= x <= drawing.width - SIZES.width
        assert -1e-6 <= y <= drawing.height - SIZES.height + 1e-6
        columns[x].append(y)
    for heights in columns.values():
        heights.sort()
        gaps = [b - a for a, b in pairwise(heights)]
        assert all(gap >= SIZES.height + SIZES.down - 1e-6 for gap in gaps)
    for start, end in set(edges):
        assert drawing.places[start][0] + SIZES.width < drawing.places[end][0]
        numbers = [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", drawing.paths[start, end])]
        assert numbers[0] == pytest.approx(drawing.places[start][0] + SIZES.width, abs=0.1)
        assert numbers[-2] == pytest.approx(drawing.places[end][0], abs=0.1)
        assert numbers[-1] == pytest.approx(drawing.places[end][1] + SIZES.height / 2, abs=0.1)


def test_a_chain_is_a_straight_line():
    drawing = draw(["c", "a", "b"], [("a", "b"), ("b", "c")])
    assert {y for _, y in drawing.places.values()} == {SIZES.margin}
    assert drawing.height == SIZES.height + 2 * SIZES.margin


def test_a_parent_stands_in_the_middle_of_its_children():
    drawing = draw(["root", "x", "y"], [("root", "x"), ("root", "y")])
    heights = [drawing.places[n][1] for n in ("x", "y")]
    assert drawing.places["root"][1] == pytest.approx(sum(heights) / 2)


def test_a_root_stands_just_before_what_needs_it():
    drawing = draw(["a", "b", "c", "late"], [("a", "b"), ("b", "c"), ("late", "c")])
    assert drawing.places["late"][0] == drawing.places["b"][0]


def test_crossings_are_counted_by_hand_and_taken_out():
    links = [("a", "q"), ("b", "p"), ("c", "r"), ("b", "r")]
    _, right = _neighbours(links)
    # a-q crosses b-p; b-r and c-r meet, which is no crossing
    assert _crossings([["a", "b", "c"], ["p", "q", "r"]], right) == 1
    # c-r crosses a-q, b-p; b-r crosses a-q; a-q and b-p do not
    assert _crossings([["c", "b", "a"], ["p", "q", "r"]], right) == 3
    assert _crossings(_ordered([["c", "b", "a"], ["p", "q", "r"]], links), right) == 0


def test_nothing_is_drawn_as_nothing_and_a_cycle_is_refused():
    assert draw([], []).places == {}
    with pytest.raises(ValueError, match="cycle"):
        draw(["a", "b"], [("a", "b"), ("b", "a")])
    assert draw(["a"], [("a", "gone")]).paths == {}  # a line to what is not drawn


def test_a_thousand_boxes_are_drawn():
    nodes = [f"n{i}" for i in range(1000)]
    edges = [(f"n{i // 3}", f"n{i}") for i in range(1, 1000)]
    assert len(draw(nodes, edges).places) == 1000
