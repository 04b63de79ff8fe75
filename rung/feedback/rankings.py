"""Rankings of a feedback artefact: load, split by prompt, read as pairs."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rung.errors import DataError
from rung.feedback.schema import Ranking, parse_ranking, rankings_path
from rung.store.artefact import canonical_json
from rung.text.rows import read_rows, write_rows


def load_rankings(folder: Path) -> list[Ranking]:
    """All rankings of a feedback artefact, in file order; DataError names a row that is wrong."""
    path = rankings_path(folder)
    records = [
        parse_ranking(row, where=f"{path.name}:{line}")
        for line, row in read_rows(path, example='{"prompt": [...], "answers": [...], ...}')
    ]
    if not records:
        raise DataError(f"{path}: no rankings; collect or import some first")
    return records


def write_rankings(folder: Path, records: Iterable[Ranking]) -> None:
    write_rows(rankings_path(folder), (record.to_json() for record in records))


def prompt_key(record: Ranking) -> str:
    """sha256 of the prompt alone: equal prompts share it, whoever judged them."""
    return hashlib.sha256(canonical_json(list(record.prompt)).encode()).hexdigest()


def split_by_prompt(
    records: Sequence[Ranking], *, heldout_fraction: float, seed: int
) -> tuple[list[Ranking], list[Ranking]]:
    """(train, held out): all judgements of a prompt fall on the same side.

    The side of a prompt depends on (seed, prompt) alone, so new feedback never moves old rows.
    """
    train: list[Ranking] = []
    heldout: list[Ranking] = []
    for record in records:
        drawn = hashlib.sha256(f"{seed}/{prompt_key(record)}".encode()).digest()
        unit = int.from_bytes(drawn[:8], "big") / 2**64
        (heldout if unit < heldout_fraction else train).append(record)
    return train, heldout


def pairs(record: Ranking) -> list[tuple[int, int]]:
    """(winner, loser) answer indices of every pair with different ranks, in index order."""
    ranks = record.ranks
    return [
        (i, j) if ranks[i] < ranks[j] else (j, i)
        for i in range(len(ranks))
        for j in range(i + 1, len(ranks))
        if ranks[i] != ranks[j]
    ]


def comparisons(records: Sequence[Ranking]) -> list[Ranking]:
    """Those with two answers or more; a single answer that was labelled orders nothing."""
    found = [record for record in records if len(record.answers) > 1]
    if not found:
        raise DataError(
            f"all {len(records)} judgements are of single answers, which order nothing; train on "
            "them with `rung kto`, or collect rankings"
        )
    return found


def ties(record: Ranking) -> list[tuple[int, int]]:
    """Pairs of answer indices with equal rank, in index order."""
    ranks = record.ranks
    return [
        (i, j) for i in range(len(ranks)) for j in range(i + 1, len(ranks)) if ranks[i] == ranks[j]
    ]


def count_rankings(records: Sequence[Ranking]) -> dict[str, Any]:
    """Counts of a set of rankings for the report: sizes, ties, flags, annotators by kind."""
    flags = Counter(flag for r in records for of_answer in r.flags for flag in of_answer)
    labels = Counter(
        _LABELS[label] for r in records for label in r.labels or () if label is not None
    )
    counts = {
        "rankings": len(records),
        "prompts": len({prompt_key(record) for record in records}),
        "answers": sum(len(record.answers) for record in records),
        "pairs": sum(len(pairs(record)) for record in records),
        "ties": sum(len(ties(record)) for record in records),
        "flags": dict(sorted(flags.items())),
        "annotators": dict(sorted(Counter(record.annotator for record in records).items())),
        "kinds": dict(sorted(Counter(record.kind for record in records).items())),
        "per_num_answers": dict(sorted(Counter(str(len(r.answers)) for r in records).items())),
    }
    return counts | ({"labels": dict(sorted(labels.items()))} if labels else {})


_LABELS = {True: "desirable", False: "undesirable"}
