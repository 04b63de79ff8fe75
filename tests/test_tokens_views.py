"""Views: each conversation is in the view or counted, each sample in the plan exactly once."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rung.errors import DataError
from rung.tokens.bpe import train_bpe, write_tokenizer
from rung.tokens.chat import render
from rung.tokens.forest import tree_size
from rung.tokens.special import END
from rung.tokens.tokenizer import Tokenizer, load_tokenizer
from rung.tokens.views import conversation_view, plan_batches, split_microbatches


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(train_bpe(["bytes only"], vocab_size=262), folder)  # one token a byte
    return load_tokenizer(folder)


def row(name: str, *contents: str, weight: float | None = None) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)
    ]
    if weight is not None:
        messages[-1]["weight"] = weight
    return {"id": name, "messages": messages}


def test_counts_by_hand(tokenizer: Tokenizer) -> None:
    rows = [
        row("fits", "ab", "cd"),  # bos u a b end a c d end: 9 tokens, 3 supervised
        row("long", "ab", "c" * 10),  # 17 tokens
        row("question", "ab"),
        row("muted", "ab", "cd", weight=0),
        row("more", "a", "b"),  # 7 tokens, 2 supervised
    ]
    view = conversation_view(rows, tokenizer, context=9)
    assert view.rows == [0, 4]
    assert view.lengths == [9, 7]
    report = view.report
    assert (report.rows, report.kept, report.shortened) == (5, 2, 0)
    assert report.dropped == {"too_long": 1, "no_supervised_tokens": 2}
    assert report.examples == {"too_long": ["long"], "no_supervised_tokens": ["question", "muted"]}
    assert (report.supervised_tokens, report.total_tokens) == (5, 16)
    line = report.describe()
    assert "2 of 5 conversations, 5 supervised of 16 tokens" in line
    assert "1 dropped: longer than the context (such as long)" in line


def test_a_shortened_conversation_ends_with_a_whole_answer(tokenizer: Tokenizer) -> None:
    rows = [row("two", "a", "b", "c", "d" * 5), row("one", "a", "b" * 20), row("ok", "a", "b")]
    view = conversation_view(rows, tokenizer, context=12, overlong="shorten")
    assert view.rows == [0, 2]
    assert view.report.shortened == 1
    assert view.report.dropped == {"too_long": 1}
    first = render(tokenizer, rows[0]["messages"][:2])
    assert view.trees[0][0].ids.tolist() == first.ids.tolist()
    assert view.trees[0][0].weights.tolist() == first.weights.tolist()
    assert "1 lost trailing turns" in view.report.describe()


def test_shortening_keeps_as_many_turns_as_fit(tokenizer: Tokenizer) -> None:
    rows = [row("three", *"abcdef")]  # bos and 6 tokens an exchange: 7, 13, 19
    sizes = [
        conversation_view(rows, tokenizer, context=context, overlong="shorten").lengths[0]
        for context in (7, 12, 13, 18, 19)
    ]
    assert sizes == [7, 7, 13, 13, 19]


LETTERS = st.text("abc", min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(
    talks=st.lists(st.lists(LETTERS, min_size=1, max_size=5), max_size=8),
    context=st.integers(5, 40),
    overlong=st.sampled_from(["drop", "shorten"]),
)
def test_every_conversation_is_kept_or_counted(
    tokenizer: Tokenizer, talks: list[list[str]], context: int, overlong: Any
) -> None:
    rows = [row(f"r{i}", *talk) for i, talk in enumerate(talks)]
    fits = [len(render(tokenizer, r["messages"]).ids) <= context for r in rows]
    answered = [len(talk) >= 2 for talk in talks]
    whole = [i for i in range(len(rows)) if fits[i] and answered[i]]
    try:
        view = conversation_view(rows, tokenizer, context=context, overlong=overlong)
    except DataError:
        assert not whole
        return
    report = view.report
    assert report.rows == len(rows) == report.kept + sum(report.dropped.values())
    assert report.kept == len(view.trees) == len(set(view.rows))
    assert len(view.rows) == len(whole) + report.shortened
    assert set(whole) <= set(view.rows)
    for index, tree in zip(view.rows, view.trees, strict=True):
        (root,) = tree
        assert tree_size(tree) <= context
        assert root.ids[-1] == tokenizer.special(END) or talks[index][1:] == []
        assert (root.weights > 0).any()
        full = render(tokenizer, rows[index]["messages"]).ids.tolist()
        assert root.ids.tolist() == full[: len(root.ids)]
    assert report.total_tokens == sum(view.lengths)


def test_nothing_left_is_refused_with_the_counts(tokenizer: Tokenizer) -> None:
    rows = [row("a", "question"), row("b", "q", "a" * 50)]
    with pytest.raises(
        DataError, match=r"0 of 2 .* 1 dropped: longer .* 1 dropped: no answer .*30"
    ):
        conversation_view(rows, tokenizer, context=30)
    with pytest.raises(DataError, match="0 of 0 conversations"):
        conversation_view([], tokenizer, context=30)


def test_a_malformed_row_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"^explain/x: message 2 is of role 'user'"):
        conversation_view(
            [{"id": "explain/x", "messages": [{"role": "user", "content": "a"}] * 2}],
            tokenizer,
            context=30,
        )
    with pytest.raises(DataError, match=r"^row 1: messages must be a list"):
        conversation_view([{"text": "a"}], tokenizer, context=30)


SIZES = st.lists(st.integers(1, 50), min_size=1, max_size=60)


@given(lengths=SIZES, slack=st.integers(0, 100), seed=st.integers(0, 3), epoch=st.integers(0, 3))
def test_a_plan_holds_every_sample_once_within_the_budget(
    lengths: list[int], slack: int, seed: int, epoch: int
) -> None:
    budget = max(lengths) + slack
    plan = plan_batches(lengths, budget=budget, seed=seed, epoch=epoch)
    assert sorted(i for batch in plan for i in batch) == list(range(len(lengths)))
    sizes = [sum(lengths[i] for i in batch) for batch in plan]
    assert max(sizes) <= budget
    for size, following in zip(sizes, plan[1:], strict=False):
        assert size + lengths[following[0]] > budget  # no batch was closed early
    assert plan == plan_batches(lengths, budget=budget, seed=seed, epoch=epoch)


def test_plans_differ_by_seed_and_epoch() -> None:
    plans = [
        plan_batches([1] * 40, budget=8, seed=seed, epoch=epoch)
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len({str(plan) for plan in plans}) == 4


def test_a_sample_above_the_budget_is_refused() -> None:
    with pytest.raises(DataError, match="conversation 1 has 9 tokens, more than the 8"):
        plan_batches([3, 9], budget=8, seed=0, epoch=0, what="conversation")
    with pytest.raises(DataError, match="no sample"):
        plan_batches([], budget=8, seed=0, epoch=0)


@given(lengths=SIZES, limit=st.integers(1, 80))
def test_microbatches_keep_order_and_limit(lengths: list[int], limit: int) -> None:
    order = list(range(len(lengths)))[::-1]
    parts = split_microbatches(order, lengths, max_tokens=limit)
    assert [i for part in parts for i in part] == order
    assert all(len(p) == 1 or sum(lengths[i] for i in p) <= limit for p in parts)
