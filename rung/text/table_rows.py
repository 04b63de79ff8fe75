"""Rows of tables, CSV, TSV and Parquet, as the objects that JSON would give."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rung.errors import DataError
from rung.text.json_rows import load_json

Row = dict[str, Any]

# A table has no lists of its own: cells of these columns hold JSON.
_ANSWERS = ("answers", "ranks", "ratings", "flags", "completions", "labels")
_LISTS = frozenset({"messages", "conversations", "history", *_ANSWERS})
# Cells of these are text, or messages as JSON: text that merely looks like JSON stays text.
_PAIR = ("chosen", "rejected", "preferred_output", "non_preferred_output")
_MAYBE = frozenset({"prompt", "completion", "input", "label", *_PAIR})
_TRUTH = {"true": True, "false": False}
_CELL_LIMIT = 2**31 - 1  # characters; the module's own limit is 131,072, less than a long document


def csv_rows(text: str, *, path: str, delimiter: str, example: str) -> Iterator[tuple[int, Row]]:
    """(line number, row) below the line of column names; all values are text.

    Cells with messages or lists are read as JSON, true and false of `label` as truth values.
    """
    csv.field_size_limit(_CELL_LIMIT)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{path}:{line}: not a table row ({error}); a quotation mark inside a quoted cell "
                "is written twice"
            ) from None
        if cells is None:
            return
        if not cells:  # a blank line
            continue
        if not names:
            names = _names(cells, path=path, line=line, example=example)
            continue
        if len(cells) != len(names):
            raise DataError(
                f"{path}:{line}: {len(cells)} cells under {len(names)} columns "
                f"({', '.join(names)}); quote a cell that holds a {delimiter!r} or a line break"
            )
        yield (
            line,
            {
                name: _cell(name, cell, where=f"{path}:{line}")
                for name, cell in zip(names, cells, strict=True)
            },
        )


def _names(cells: list[str], *, path: str, line: int, example: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise DataError(f"{path}:{line}: column {doubled!r} is there twice; keep one")
    if "" in names:
        raise DataError(
            f"{path}:{line}: column {names.index('') + 1} has no name; the first line of a table "
            f"names its columns, as the keys of {example}"
        )
    return names


def _cell(name: str, cell: str, *, where: str) -> Any:
    if name in ("label", "kto_tag") and cell.strip().lower() in _TRUTH:
        return _TRUTH[cell.strip().lower()]
    if name == "margin":
        try:
            return float(cell)
        except ValueError:
            raise DataError(f"{where}: margin {cell!r} is not a number") from None
    if name in _LISTS and cell.lstrip().startswith("["):
        try:
            return load_json(cell)
        except ValueError as error:
            raise DataError(f"{where}: {name} holds no JSON list ({error})") from None
    looks_like = cell.lstrip().startswith(("[", "{"))
    return _messages_or_text(name, cell) if name in _MAYBE and looks_like else cell


def _messages_or_text(name: str, cell: str) -> Any:
    try:
        value = load_json(cell)
    except (ValueError, RecursionError):
        return cell
    if name == "label" and isinstance(value, list):  # several labels
        return value
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, dict) and {"role", "from", "messages"} & set(first):
        return value
    return cell


def parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """(row number, row); nulls are left out, as Parquet has one for every key a row lacks."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a Parquet file: {error}") from None
    names = file.schema_arrow.names
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise DataError(f"{path}: column {doubled!r} is there twice; keep one")
    number = 0
    for batch in file.iter_batches():
        for row in batch.to_pylist():
            number += 1
            yield number, _without_nulls(row)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(v) for key, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
