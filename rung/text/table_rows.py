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
_LONGEST_NAME = 60  # characters of a column's name
_HEAD_ROWS = 1000  # lines that tell the label from the text where no line names the columns


def csv_rows(text: str, *, path: str, tabs: bool, example: str) -> Iterator[tuple[int, Row]]:
    """(line number, row) below the line of column names; all values are text.

    Cells with messages or lists are read as JSON, true and false of `label` as truth values. Two
    columns whose first line holds a number or a long text have no names: a text and its label.
    """
    lines = table_lines(text, path=path, tabs=tabs)
    if not lines:
        return
    names = _unnamed([cells for _, cells in lines[:_HEAD_ROWS]])
    if names is None:
        (line, first), *lines = lines
        names = _names(first, path=path, line=line, example=example)
    for line, cells in lines:
        if len(cells) != len(names):
            delimiter = "tab" if tabs else "comma"
            raise DataError(
                f"{path}:{line}: {len(cells)} cells under {len(names)} columns "
                f"({', '.join(names)}); put a cell that holds a {delimiter} between double quotes"
            )
        where = f"{path}:{line}"
        pairs = zip(names, cells, strict=True)
        yield line, {name: _cell(name, cell, where=where) for name, cell in pairs}


def table_lines(text: str, *, path: str, tabs: bool) -> list[tuple[int, list[str]]]:
    """(line number, cells) of the lines of a table that are not blank.

    Between tabs quotes are text, unless that leaves ragged lines.
    """
    if not tabs:
        return _quoted(text, path=path, delimiter=",")
    lines = [
        (number, line.rstrip("\r").split("\t"))
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    if '"' in text and len({len(cells) for _, cells in lines}) > 1:
        return _quoted(text, path=path, delimiter="\t")
    return [(number, [_unquote(cell) for cell in cells]) for number, cells in lines]


def _unquote(cell: str) -> str:
    """`"a ""b"" c"` is how spreadsheets write `a "b" c`; a cell with loose quotes stays."""
    inner = cell[1:-1]
    whole = len(cell) >= 2 and cell[0] == cell[-1] == '"'
    if whole and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return cell


def _quoted(text: str, *, path: str, delimiter: str) -> list[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines: list[tuple[int, list[str]]] = []
    before = 0
    limit = csv.field_size_limit(len(text) + 1)  # 128 KiB otherwise: a page of text can be longer
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((before + 1, cells))
            before = reader.line_num
    except csv.Error as error:
        raise DataError(
            f"{path}:{before + 1}: {error}; a double quote opens a cell that ends with one, and"
            ' inside it is written twice (""")'
        ) from None
    finally:
        csv.field_size_limit(limit)
    return lines


def _unnamed(head: list[list[str]]) -> list[str] | None:
    """Names of two columns without any; the one with fewer different values is the label."""
    first = [cell.strip() for cell in head[0]]
    if any(len(cells) != 2 for cells in head):
        return None
    if not any(cell.lstrip("-").isdecimal() or len(cell) > _LONGEST_NAME for cell in first):
        return None
    left, right = (len({cells[column] for cells in head}) for column in (0, 1))
    return ["text", "label"] if right <= left else ["label", "text"]


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
