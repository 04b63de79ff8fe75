"""Labelled texts as rows: duplicates, conflicts, sides."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rung.errors import DataError
from rung.text.labelled import Labelled
from rung.text.normalise import normalise
from rung.text.rows import Row

_EXAMPLES = 3


@dataclass
class Dropped:
    """Rows that were left out for one reason, and the first few of them."""

    count: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)

    def add(self, row: Labelled) -> None:
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append({"id": row.where, "text": row.text[:200]})

    def to_json(self) -> dict[str, Any]:
        return {"count": self.count, "examples": self.examples}


@dataclass
class Collected:
    """What was read. rows: side -> rows. labels: sorted, numbers by value."""

    rows: dict[str, list[Row]]
    multi_label: bool
    num_read: int
    dropped: dict[str, Dropped]
    labels: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self._name_labels()

    def _name_labels(self) -> None:
        have = {label for rows in self.rows.values() for row in rows for label in row["labels"]}
        self.labels = sorted(have, key=_by_value)

    def count(self, side: str) -> Counter[str]:
        """Texts of each label on one side."""
        return Counter(label for row in self.rows[side] for label in row["labels"])

    def draw_heldout(self, *, fraction: float, seed: int) -> None:
        """Move a share of the training rows to the held-out side, by the hash of each text."""
        rows = self.rows["train"]
        self.rows = {"train": [], "heldout": []}
        for row in rows:
            drawn = hashlib.sha256(f"{seed}/{row['id']}".encode()).digest()
            unit = int.from_bytes(drawn[:8], "big") / 2**64
            self.rows["heldout" if unit < fraction else "train"].append(row)

    def drop_labels(self, rare: set[str]) -> None:
        """Leave out texts that have a label of `rare`."""
        entry = self.dropped.setdefault("rare_label", Dropped())
        for side, rows in self.rows.items():
            for row in rows:
                if rare & set(row["labels"]):
                    entry.add(Labelled(row["text"], tuple(row["labels"]), row["id"]))
            self.rows[side] = [row for row in rows if not rare & set(row["labels"])]
        self._name_labels()


def collect(
    train: Iterable[Labelled],
    heldout: Iterable[Labelled] | None,
    *,
    names: Mapping[Any, str],
    multi_label: bool | None,
) -> Collected:
    """All rows, each text once. A text of the held-out files is taken out of the training rows.

    Texts are the same when they differ in case and white space alone.
    """
    sides = {"train": list(train), "heldout": list(heldout or ())}
    num_read = sum(map(len, sides.values()))
    if not sides["train"]:
        raise DataError("the data has no row to train on; check the path")
    sides = _named(sides, {str(key): value for key, value in names.items()})
    everything = [row for rows in sides.values() for row in rows]
    several = any(row.listed and len(row.labels) != 1 for row in everything)
    multi = several if multi_label is None else multi_label
    dropped: dict[str, Dropped] = {}
    kept: dict[str, list[Row]] = {"train": [], "heldout": []}
    elsewhere: set[str] = set()
    for side in ("heldout", "train"):  # held-out rows stand as they are given
        whole = [row for row in sides[side] if not _unusable(row, multi, dropped)]
        groups = _same_texts(whole)
        for key, rows in groups.items():
            if key in elsewhere:
                for row in rows:
                    dropped.setdefault("in_heldout_too", Dropped()).add(row)
            elif len({row.labels for row in rows}) > 1:
                for row in rows:
                    dropped.setdefault("conflicting_labels", Dropped()).add(row)
            else:
                for row in rows[1:]:
                    dropped.setdefault("duplicate", Dropped()).add(row)
                kept[side].append(_row(rows[0]))
        elsewhere |= set(groups)
    return Collected(kept, multi, num_read, dropped)


def _by_value(label: str) -> tuple[bool, int, str]:
    number = label.isascii() and label.isdecimal()
    return (not number, int(label) if number else 0, label)


def _named(
    sides: Mapping[str, list[Labelled]], names: Mapping[str, str]
) -> dict[str, list[Labelled]]:
    """The rows with their labels called by `names`; DataError for a name of no label."""
    seen = {label for rows in sides.values() for row in rows for label in row.labels}
    unknown = sorted(set(names) - seen)
    if unknown:
        raise DataError(
            f"names has {', '.join(unknown)}, which no row has as a label; labels found:"
            f" {', '.join(sorted(seen)[:12])}"
        )
    return {
        side: [
            replace(row, labels=tuple(sorted({names.get(label, label) for label in row.labels})))
            for row in rows
        ]
        for side, rows in sides.items()
    }


def _unusable(row: Labelled, multi_label: bool, dropped: dict[str, Dropped]) -> bool:
    if not normalise(row.text).strip():
        reason = "empty_text"
    elif not row.labels and not (multi_label and row.listed):
        reason = "no_label"
    elif len(row.labels) > 1 and not multi_label:
        raise DataError(
            f"{row.where}: {len(row.labels)} labels ({', '.join(row.labels)}) where multi_label is"
            " false; leave multi_label out, or give each text one label"
        )
    else:
        return False
    dropped.setdefault(reason, Dropped()).add(row)
    return True


def _same_texts(rows: Iterable[Labelled]) -> dict[str, list[Labelled]]:
    groups: dict[str, list[Labelled]] = {}
    for row in rows:
        groups.setdefault(_identity(row.text), []).append(row)
    return groups


def _identity(text: str) -> str:
    return " ".join(normalise(text).split()).casefold()


def _row(row: Labelled) -> Row:
    digest = hashlib.sha256(_identity(row.text).encode()).hexdigest()
    text = normalise(row.text).strip()
    return {"id": f"labels/{digest[:16]}", "text": text, "labels": list(row.labels)}
