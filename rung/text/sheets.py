"""Rows of tables: .csv, .tsv and .parquet, each row with its line and the keys of the header."""

import gzip
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rung.errors import DataError
from rung.text.decode import decode
from rung.text.rows import Row, read_rows
from rung.text.table_rows import table_lines

Header = Callable[[list[list[str]]], Sequence[str] | None]
"""The names of the columns of a table that may have no header; None: its first line is one."""


def read_any_rows(path: Path, *, header: Header, example: str) -> Iterator[tuple[int, Row]]:
    """(line, row) of .jsonl, .json, .csv, .tsv (each also .gz) and .parquet."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        return _parquet(path)
    if name.endswith((".csv", ".tsv")):
        return read_sheet(path, header=header)
    return read_rows(path, example=example)


def read_sheet(path: Path, *, header: Header) -> Iterator[tuple[int, Row]]:
    """(line, row) of a .csv or .tsv file; DataError for a line with another number of columns."""
    text = read_text(path)
    lines = table_lines(text, path=str(path), tabs=path.name.removesuffix(".gz").endswith(".tsv"))
    if not lines:
        return
    keys = header([cells for _, cells in lines[:1000]])
    body = lines if keys is not None else lines[1:]
    keys = list(keys if keys is not None else (cell.strip() for cell in lines[0][1]))
    if len(set(keys)) < len(keys) or "" in keys:
        raise DataError(
            f"{path}:{lines[0][0]}: the columns are called {', '.join(map(repr, keys))}; each needs"
            " a name of its own"
        )
    for number, cells in body:
        if len(cells) != len(keys):
            raise DataError(
                f"{path}:{number}: {len(cells)} columns where {len(keys)} are due"
                f" ({', '.join(keys)}); put text with a separator in it between double quotes"
            )
        yield number, dict(zip(keys, cells, strict=True))


def read_text(path: Path) -> str:
    """The text of a file, perhaps .gz: UTF-8, or by its byte order mark, or Windows-1252."""
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    text, _ = decode(data, encoding="auto", where=str(path))
    if text is None:
        raise DataError(f"{path}: not text (it has zero bytes or control characters)")
    return text


def _parquet(path: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow
    import pyarrow.parquet

    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{path}: not a Parquet file that can be read ({first})") from None
