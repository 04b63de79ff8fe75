"""Rows drawn from a library: real names and made-up ones, by a seed."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rung.tasks.entries import Entry, Library
from rung.tasks.made_up import NameForge
from rung.tasks.questions import MAX_ANSWER, Limits, ask, make_row, make_unknown_row
from rung.text.rows import Row


@dataclass(frozen=True)
class Source:
    """What rows are made of: the library, the limits, the options of a choice of modules."""

    library: Library
    limits: Limits
    modules: Sequence[str]
    seed: int

    def draw(self, *key: str) -> random.Random:
        """Random numbers of their own for each purpose and name: text seeds hash by sha512."""
        return random.Random("/".join([str(self.seed), *key]))


def real_rows(
    source: Source, entries: Sequence[Entry], *, format: str, num: int, group: str, side: str
) -> list[Row]:
    """Up to `num` rows of one format, one per name, in a seeded order of names."""
    order = list(entries)
    source.draw("names", side, group, format).shuffle(order)
    rows: list[Row] = []
    for row in _candidates(source, order, format=format, group=group, side=side):
        if len(rows) == num:
            break
        rows.append(row)
    return rows


def _candidates(
    source: Source, entries: Sequence[Entry], *, format: str, group: str, side: str
) -> Iterator[Row]:
    for entry in entries:
        if format == "module" and entry.short in source.library.ambiguous:
            continue
        draw = source.draw(side, format, entry.name)
        question = ask(entry, format, draw, limits=source.limits, modules=source.modules)
        if question is None or len(question.answer) > MAX_ANSWER:
            continue
        row = make_row(
            question,
            id=f"{format}/{entry.name}",
            name=entry.name,
            group=group,
            draw=draw,
            heldout=side == "heldout",
        )
        if len(row["messages"][0]["content"]) <= source.limits.prompt_chars:
            yield row


def made_up_rows(source: Source, forge: NameForge | None, *, num: int, side: str) -> list[Row]:
    """`num` rows on names that do not exist, all different from those made before."""
    rows: list[Row] = []
    draw = source.draw("made_up", side)
    for _ in range(num if forge else 0):
        assert forge is not None
        made = forge.make(draw)
        row = make_unknown_row(made.name, made.short, draw=draw, heldout=side == "heldout")
        row["truth"]["made_up"] = made.kind
        rows.append(row)
    return rows
