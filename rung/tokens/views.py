"""Conversations as trees with every drop counted, and plans of which go into which step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from rung.errors import DataError
from rung.tokens.chat import Rendered, render
from rung.tokens.forest import Tree, document, tree_size
from rung.tokens.tokenizer import Tokenizer

CAUSES = {
    "too_long": "longer than the context",
    "no_supervised_tokens": "no answer to learn from (none, or all of weight 0)",
}


@dataclass(frozen=True)
class ViewReport:
    """What became of the rows: rows == kept + sum(dropped.values()).

    kept: conversations in the view; shortened: how many of these lost trailing turns.
    dropped: count by cause (keys of CAUSES). supervised_tokens, total_tokens: of the kept.
    examples: up to 3 row names by cause.
    """

    rows: int
    kept: int
    shortened: int
    dropped: Mapping[str, int]
    supervised_tokens: int
    total_tokens: int
    examples: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def describe(self) -> str:
        """One line for the user."""
        line = (
            f"{self.kept:,} of {self.rows:,} conversations, {self.supervised_tokens:,} supervised "
            f"of {self.total_tokens:,} tokens"
        )
        if self.total_tokens:
            line += f" ({100 * self.supervised_tokens / self.total_tokens:.1f} %)"
        if self.shortened:
            line += f"; {self.shortened:,} lost trailing turns"
        for cause, count in self.dropped.items():
            line += f"; {count:,} dropped: {CAUSES[cause]} (such as {self.examples[cause][0]})"
        return line


@dataclass(frozen=True)
class ConversationView:
    """trees[i] is the conversation of rows[i]; report says what is missing and why."""

    trees: list[Tree]
    rows: list[int]
    report: ViewReport

    @property
    def lengths(self) -> list[int]:
        """Tokens of each tree, for `plan_batches`."""
        return [tree_size(tree) for tree in self.trees]


def conversation_view(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    *,
    context: int,
    overlong: Literal["drop", "shorten"] = "drop",
) -> ConversationView:
    """Every row ({"id", "messages"}) as a tree of at most `context` tokens, or counted as dropped.

    overlong: "drop" a conversation longer than the context, or "shorten" it by its last turns
    until it fits. An answer is never cut in two: a model that learns from half an answer learns
    not to stop. Raises DataError for a malformed row, and when no supervised token is left.
    """
    kept, report = fit_conversations(rows, tokenizer, context=context, overlong=overlong)
    if not kept:
        raise DataError(
            f"no conversation is left to train on: {report.describe()}; the context is {context} "
            "tokens: raise it, shorten the conversations, or give them answers"
        )
    trees = [document(rendered.ids, rendered.weights) for _, rendered in kept]
    return ConversationView(trees=trees, rows=[index for index, _ in kept], report=report)


def fit_conversations(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    *,
    context: int,
    overlong: Literal["drop", "shorten"] = "drop",
) -> tuple[list[tuple[int, Rendered]], ViewReport]:
    """((index of the row, its tokens) of those that `conversation_view` keeps, the report)."""
    kept: list[tuple[int, Rendered]] = []
    causes: dict[str, list[str]] = {cause: [] for cause in CAUSES}
    shortened = 0
    for index, row in enumerate(rows):
        name = str(row.get("id", f"row {index + 1}"))
        messages = row.get("messages", ())
        rendered = render(tokenizer, messages, where=name)
        if len(rendered.ids) > context and overlong == "shorten":
            shorter = _shorten(rendered, context=context)
            if shorter is not None:
                rendered, shortened = shorter, shortened + 1
        if len(rendered.ids) > context:
            causes["too_long"].append(name)
        elif not rendered.num_supervised:
            causes["no_supervised_tokens"].append(name)
        else:
            kept.append((index, rendered))
    report = ViewReport(
        rows=len(rows),
        kept=len(kept),
        shortened=shortened,
        dropped={cause: len(names) for cause, names in causes.items() if names},
        supervised_tokens=sum(r.num_supervised for _, r in kept),
        total_tokens=sum(len(r.ids) for _, r in kept),
        examples={cause: names[:3] for cause, names in causes.items() if names},
    )
    return kept, report


def _shorten(rendered: Rendered, *, context: int) -> Rendered | None:
    """The longest head that fits and ends with a supervised answer; None when there is none."""
    trained = rendered.weights > 0
    ends = np.flatnonzero(trained & ~np.append(trained[1:], False)) + 1
    fitting = ends[ends <= context]
    if not len(fitting):
        return None
    return Rendered(rendered.ids[: fitting[-1]], rendered.weights[: fitting[-1]])


def plan_batches(
    lengths: Sequence[int], *, budget: int, seed: int, epoch: int, what: str = "sample"
) -> list[list[int]]:
    """Indices of `lengths` in batches of at most `budget` tokens, each index exactly once.

    The order is a random one that depends on (seed, epoch) alone; a batch is closed when the next
    sample does not fit. The last batch of an epoch is smaller than the others; the loss is divided
    by its own count. Raises DataError for a sample longer than the budget.
    """
    if not len(lengths):
        raise DataError(f"there is no {what} to plan batches of")
    longest = int(np.argmax(lengths))
    if lengths[longest] > budget:
        raise DataError(
            f"{what} {longest} has {lengths[longest]:,} tokens, more than the {budget:,} of a "
            "batch; raise the batch, or lower the context"
        )
    order = np.random.default_rng((seed, epoch)).permutation(len(lengths))
    return _fill([int(i) for i in order], lengths, limit=budget)


def split_microbatches(
    indices: Sequence[int], lengths: Sequence[int], *, max_tokens: int
) -> list[list[int]]:
    """One batch in order as microbatches of at most `max_tokens` tokens (memory, not arithmetic).

    A sample longer than that is a microbatch of its own.
    """
    return _fill(indices, lengths, limit=max_tokens)


def _fill(order: Sequence[int], lengths: Sequence[int], *, limit: int) -> list[list[int]]:
    batches: list[list[int]] = []
    used = limit + 1  # full, so that the first sample opens a batch
    for index in order:
        if used + lengths[index] > limit:
            batches.append([])
            used = 0
        batches[-1].append(index)
        used += lengths[index]
    return batches
