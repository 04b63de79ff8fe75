"""Mixing weights: chosen shares of the formats, by leaving rows out or using them again."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rung.config import did_you_mean
from rung.errors import DataError
from rung.text.rows import Row


def mix_rows(
    rows: Sequence[Row], weights: Mapping[str, float], *, repeat: int, seed: int
) -> list[Row]:
    """`rows` with the share of each format as in `weights`, no row more than `repeat` times.

    As many rows as that allows: the scarcest format, used `repeat` times, sets the size. Which
    rows stay is drawn from (seed, id), so new rows move few others. A row's further uses have
    "#2", "#3" ... at the end of their id. DataError for a format without a weight or without rows.
    """
    by_format: dict[str, list[Row]] = {}
    for row in rows:
        by_format.setdefault(row["format"], []).append(row)
    _check(by_format, weights)
    total_weight = sum(weights.values())
    shares = {name: weight / total_weight for name, weight in weights.items() if weight > 0}
    size = min(repeat * len(by_format[name]) / share for name, share in shares.items())
    mixed: list[Row] = []
    for name, share in shares.items():
        mixed += _draw(by_format[name], round(share * size), seed=seed)
    order = {row["id"]: place for place, row in enumerate(rows)}
    return sorted(mixed, key=lambda row: (_use(row["id"]), order[row["id"].partition("#")[0]]))


def _check(by_format: Mapping[str, Sequence[Row]], weights: Mapping[str, float]) -> None:
    known = sorted(by_format)
    for name in weights:
        if name not in by_format:
            raise DataError(
                f"weights: no row to train on has the format {name!r}{did_you_mean(name, known)}"
            )
    missing = [name for name in known if name not in weights]
    if missing:
        raise DataError(
            f"weights: format {missing[0]!r} ({len(by_format[missing[0]])} rows) has no weight; "
            f"give each of {', '.join(known)} one, 0 leaves it out"
        )
    if any(weight < 0 for weight in weights.values()) or not any(weights.values()):
        raise DataError(f"weights: {dict(weights)}: numbers from 0, at least one above 0")


def _draw(rows: Sequence[Row], num: int, *, seed: int) -> list[Row]:
    """`num` rows: all of them as often as it goes in, then some, drawn by (seed, id)."""

    def order(row: Row) -> str:
        return hashlib.sha256(f"{seed}/mix/{row['id']}".encode()).hexdigest()

    drawn = sorted(rows, key=order)
    whole, rest = divmod(num, len(rows))
    uses = [drawn] * whole + [drawn[:rest]]
    return [
        row if use == 0 else {**row, "id": f"{row['id']}#{use + 1}"}
        for use, some in enumerate(uses)
        for row in some
    ]


def _use(id: str) -> int:
    return int(id.partition("#")[2] or 1)


def count_formats(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """What each format's part is, in rows and in the characters of answers, which are what the
    loss counts: {"summaries": {"rows": 300, "share": 0.6, "answer_share": 0.8}}."""
    num = Counter(row["format"] for row in rows)
    size: Counter[str] = Counter()
    for row in rows:
        size[row["format"]] += sum(
            len(m["content"]) for m in row["messages"] if m["role"] == "assistant"
        )
    total = max(1, size.total())
    return {
        name: {
            "rows": num[name],
            "share": round(num[name] / len(rows), 4),
            "answer_share": round(size[name] / total, 4),
        }
        for name in sorted(num)
    }


def describe_formats(formats: Mapping[str, Mapping[str, Any]]) -> str:
    """summaries 300 rows, 60.0 % (80.0 % of the answers' text); ..."""
    return "; ".join(
        f"{name} {part['rows']:,} rows, {100 * part['share']:.1f} % "
        f"({100 * part['answer_share']:.1f} % of the answers' text)"
        for name, part in formats.items()
    )
