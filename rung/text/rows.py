"""Rows of files: read with line numbers, recognised by shape, written with stable bytes."""

import gzip
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rung.errors import DataError
from rung.store.artefact import canonical_json
from rung.text.json_rows import json_lines, json_list
from rung.text.table_rows import csv_rows, parquet_rows

Row = dict[str, Any]

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Shape:
    """A known layout of a row: the keys it needs, one worked example, and how to read it.

    `check` looks at types where keys alone are ambiguous; None means the keys decide.
    optional: further keys that are read where a row has them.
    """

    name: str
    keys: tuple[str, ...]
    example: str
    read: Callable[[Row], Any]
    check: Callable[[Row], bool] | None = None
    optional: tuple[str, ...] = ()

    def fits(self, row: Row) -> bool:
        return all(key in row for key in self.keys) and (self.check is None or self.check(row))

    def unused(self, row: Row) -> list[str]:
        """Keys of `row` that this shape does not read, in their order."""
        return [key for key in row if key not in self.keys and key not in self.optional]


def find_shape(row: Row, shapes: Sequence[Shape], *, where: str, hint: str = "") -> Shape:
    """The first of `shapes` that fits; DataError with the nearest one and its example otherwise.

    hint: ends the message.
    """
    for shape in shapes:
        if shape.fits(row):
            return shape
    raise DataError(f"{where}: no known shape; {nearest_shape(row, shapes)}{hint}")


def nearest_shape(row: Row, shapes: Sequence[Shape]) -> str:
    """What is there, what is missing to the nearest shape, how that looks, and the way out."""
    near = max(shapes, key=lambda shape: _likeness(row, shape))
    missing = [key for key in near.keys if key not in row]
    problem = f"it lacks {', '.join(missing)}" if missing else "the values have other types"
    said = (
        f"keys found: {', '.join(sorted(map(str, row))) or 'none'}. "
        f"Nearest: {near.name} ({problem}), for example {near.example}"
    )
    spare = [key for key, value in row.items() if key not in near.keys and value and key != "where"]
    if len(missing) == 1 and len(spare) == 1:
        said += f"; if {spare[0]!r} is that: --set columns.{missing[0]}={spare[0]}"
    return said


def _likeness(row: Row, shape: Shape) -> tuple[float, int, int]:
    """Share of the shape's keys that are there; values of other keys that would do for the rest,
    by type; fewer keys.

    {"prompt": "Hi", "good": "Hello!", "bad": "Go."} is a pair under other names, not a ranking
    without its lists, nor a tree, whose prompt is an object.
    """
    try:
        example = json.loads(shape.example)
    except ValueError:  # shortened for reading
        example = {}
    present = sum(
        key in row and isinstance(row[key], dict) == isinstance(example.get(key, row[key]), dict)
        for key in shape.keys
    )
    wanted = Counter(type(example[k]) for k in shape.keys if k in example and k not in row)
    spare = Counter(type(value) for key, value in row.items() if key not in shape.keys)
    return present / len(shape.keys), (wanted & spare).total(), -len(shape.keys)


def file_suffix(path: Path) -> str:
    """ ".jsonl" of a.jsonl and of a.jsonl.gz."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def read_rows(path: Path, *, example: str = '{"text": "..."}') -> Iterator[tuple[int, Row]]:
    """(line, row) of a file of one of SUFFIXES, each but .parquet also .gz; in .parquet the row's
    number. Any other name is read as .jsonl.

    Blank lines are passed over. DataError for a missing file, bytes that are not UTF-8, a line
    that is not JSON, a doubled key and a value that is not an object, each with its line and a
    worked example.
    """
    for number, value in _values(path, example=example):
        if not isinstance(value, dict):
            raise DataError(
                f"{path}:{number}: a row is a JSON object, found {type(value).__name__}; "
                f"for example {example}"
            )
        yield number, value


def _values(path: Path, *, example: str) -> Iterator[tuple[int, Any]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path in `files`")
    suffix = file_suffix(path)
    if suffix == ".parquet":
        return parquet_rows(path)
    text = _read_text(path)
    if suffix in (".csv", ".tsv"):
        return csv_rows(text, path=str(path), tabs=suffix == ".tsv", example=example)
    parse = json_list if suffix == ".json" else json_lines
    return parse(text, path=str(path), example=example)


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    try:
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 (byte {data[error.start]:#04x}); convert the file to UTF-8"
        ) from None
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: a damaged gzip file ({error}); make or copy it again") from None


def write_rows(path: Path, rows: Iterable[Any], *, sync: bool = False) -> None:
    """One canonical JSON object a line: equal rows give equal bytes.

    sync: appear whole or not at all, also after a kill or a power cut (for resumable chunks).
    """
    part = path.with_name(path.name + ".tmp")
    with part.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(canonical_json(row) + "\n" for row in rows)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    part.replace(path)
