"""Rows of JSON files: read with line numbers, recognised by shape, written with stable bytes."""

import gzip
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rung.errors import DataError
from rung.store.artefact import canonical_json

Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """A known layout of a row: the keys it needs, one worked example, and how to read it.

    `check` looks at types where keys alone are ambiguous; None means the keys decide.
    """

    name: str
    keys: tuple[str, ...]
    example: str
    read: Callable[[Row], Any]
    check: Callable[[Row], bool] | None = None

    def fits(self, row: Row) -> bool:
        return all(key in row for key in self.keys) and (self.check is None or self.check(row))


def find_shape(row: Row, shapes: Sequence[Shape], *, where: str) -> Shape:
    """The first of `shapes` that fits; DataError with the nearest one and its example otherwise."""
    for shape in shapes:
        if shape.fits(row):
            return shape
    near = max(shapes, key=lambda shape: _likeness(row, shape))
    missing = [key for key in near.keys if key not in row]
    problem = f"it lacks {', '.join(missing)}" if missing else "the values have other types"
    raise DataError(
        f"{where}: no known shape; keys found: {', '.join(sorted(map(str, row))) or 'none'}. "
        f"Nearest: {near.name} ({problem}), for example {near.example}"
    )


def _likeness(row: Row, shape: Shape) -> tuple[float, int, int]:
    """Share of the shape's keys that are there; values of other keys that would do for the rest,
    by type; fewer keys.

    {"prompt": "Hi", "good": "Hello!", "bad": "Go."} is a pair under other names, not a ranking
    without its lists.
    """
    present = sum(key in row for key in shape.keys)
    try:
        example = json.loads(shape.example)
    except ValueError:  # shortened for reading
        example = {}
    wanted = Counter(type(example[k]) for k in shape.keys if k in example and k not in row)
    spare = Counter(type(value) for key, value in row.items() if key not in shape.keys)
    return present / len(shape.keys), (wanted & spare).total(), -len(shape.keys)


def read_rows(path: Path, *, example: str = '{"text": "..."}') -> Iterator[tuple[int, Row]]:
    """(line number, row) of a .jsonl file or (item number, row) of a .json list; both also .gz.

    Blank lines are passed over. DataError for a missing file, bytes that are not UTF-8, a line
    that is not JSON and a value that is not an object, each with its line and a worked example.
    """
    text = _read_text(path)
    if path.name.removesuffix(".gz").endswith(".json"):
        values = _json_list(path, text, example=example)
    else:
        values = _json_lines(path, text, example=example)
    for number, value in values:
        if not isinstance(value, dict):
            raise DataError(
                f"{path}:{number}: a row is a JSON object, found {type(value).__name__}; "
                f"for example {example}"
            )
        yield number, value


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path in `files`")
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


def _json_lines(path: Path, text: str, *, example: str) -> Iterator[tuple[int, Any]]:
    # Not splitlines(): U+2028 and its kin may stand unescaped inside a JSON string.
    for number, line in enumerate(io.StringIO(text), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except ValueError as error:
            raise DataError(
                f"{path}:{number}: not JSON ({error}); one object a line, for example {example}"
            ) from None


def _json_list(path: Path, text: str, *, example: str) -> Iterator[tuple[int, Any]]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None
    if not isinstance(values, list):
        raise DataError(
            f"{path}: a .json file holds a list of rows, found {type(values).__name__}; "
            f"for example [{example}, ...]"
        )
    yield from enumerate(values, start=1)


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
