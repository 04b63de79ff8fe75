"""Texts with labels, from the layouts that people keep them in."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rung.errors import DataError
from rung.text.rows import Row
from rung.text.sheets import read_any_rows, read_text

TEXT_KEYS = ("text", "sentence", "content", "document")
LABEL_KEYS = ("label", "labels", "class", "category")
EXAMPLE = '{"text": "The plot drags.", "label": "negative"}'
_PLAIN = (".txt", ".md", ".text")
_TABLE = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Labelled:
    """One text. labels: one, several or none, as text. `listed`: they came as a list.

    Example: Labelled("The plot drags.", ("negative",), "reviews.csv:7")
    """

    text: str
    labels: tuple[str, ...]
    where: str
    listed: bool = False


@dataclass(frozen=True)
class Keys:
    """Where a row has its text and its labels; "" finds the usual names.

    separator: splits a label cell into several labels, as in "sport;politics".
    """

    text: str = ""
    label: str = ""
    separator: str = ""


def read_labelled(path: Path, keys: Keys) -> Iterator[Labelled]:
    """Rows of .jsonl, .json, .csv, .tsv (each also .gz) or .parquet.

    A table of two columns whose first line names none of the known keys has no header: the column
    with fewer different values is the label. DataError: file, line, keys found, worked example.
    """
    for number, row in read_any_rows(
        path, header=lambda head: _without_header(head, keys), example=EXAMPLE
    ):
        where = f"{path}:{number}"
        text = text_of(row, keys, where=where)
        raw = row[_key_of(row, keys.label, LABEL_KEYS, what="label", where=where)]
        yield Labelled(text, *_labels_of(raw, keys, where=where))


def read_texts(path: Path, *, text_key: str = "") -> Iterator[tuple[Row, str]]:
    """(row, text) of a table, or of the lines of a .txt file (the row is {"text": line} then)."""
    if path.name.removesuffix(".gz").endswith(_PLAIN):
        for line in read_text(path).split("\n"):
            if line.strip():
                yield {"text": line.strip()}, line
        return
    keys = Keys(text=text_key)
    for number, row in read_any_rows(
        path, header=lambda head: _without_header(head, keys), example=EXAMPLE
    ):
        yield row, text_of(row, keys, where=f"{path}:{number}")


def text_of(row: Row, keys: Keys, *, where: str) -> str:
    """The text of a row; DataError with the keys found and a worked example where it has none."""
    text = row[_key_of(row, keys.text, TEXT_KEYS, what="text", where=where)]
    if not isinstance(text, str):
        raise DataError(
            f"{where}: the text is {type(text).__name__}, not a string; for example {EXAMPLE}"
        )
    return text


def read_classes(folder: Path) -> Iterator[Labelled]:
    """Texts of `folder/LABEL/*.txt` (.md, .gz too), a text a file; the sub-folder is the label."""
    for label in class_folders(folder):
        for path in text_files(label):
            yield Labelled(read_text(path), (label.name,), str(path))


def read_lines(path: Path, label: str) -> Iterator[Labelled]:
    """A text a line, all of one label; or the text files below a folder."""
    if path.is_dir():
        for file in text_files(path):
            yield Labelled(read_text(file), (label,), str(file))
        return
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield Labelled(line, (label,), f"{path}:{number}")


def class_folders(folder: Path) -> list[Path]:
    """The sub-folders that are labels, sorted; DataError where there are not two of them."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder (in {Path.cwd()}); check `folder`")
    found = [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    found = [p for p in found if text_files(p)]
    if len(found) < 2:
        raise DataError(
            f"{folder}: {len(found)} sub-folders with text files, a label each, where at least 2"
            f" are due: {folder.name}/positive/1.txt, {folder.name}/negative/1.txt; rows of a"
            " table go under `files`"
        )
    return found


def text_files(folder: Path) -> list[Path]:
    """Text files below a folder, in order of their names."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name.removesuffix(".gz").endswith(_PLAIN)
    )


def check_file(name: str) -> Path:
    """The path of a file of rows; DataError for one that is missing or of no known kind."""
    path = Path(name)
    if not path.is_file():
        kind = "is a folder; a folder per label goes under `folder`" if path.is_dir() else ""
        raise DataError(f"{name}: {kind or f'no such file (in {Path.cwd()})'}; check `files`")
    if not path.name.removesuffix(".gz").endswith(_TABLE):
        raise DataError(
            f"{name}: cannot read labels from it; known: {' '.join(_TABLE)}, also .gz. Plain text"
            " with a text a line goes under `lines`, as in --set lines.positive=good.txt"
        )
    return path


def _key_of(row: Row, wanted: str, known: Sequence[str], *, what: str, where: str) -> str:
    if wanted and wanted in row:
        return wanted
    found = [key for key in known if key in row] if not wanted else []
    if len(found) == 1:
        return found[0]
    if len(found) > 1:
        raise DataError(
            f"{where}: {' and '.join(found)} could each be the {what}; say which with {what}_key"
        )
    have = ", ".join(sorted(map(str, row))) or "none"
    missing = f"no key {wanted!r}" if wanted else f"no {what} (looked for {', '.join(known)})"
    raise DataError(
        f"{where}: {missing}; keys found: {have}. Name it with {what}_key, or write rows such as"
        f" {EXAMPLE}"
    )


def _labels_of(raw: Any, keys: Keys, *, where: str) -> tuple[tuple[str, ...], str, bool]:
    """(labels, where, listed): what `Labelled` takes after the text."""
    if keys.separator and isinstance(raw, str):
        raw = [part for part in raw.split(keys.separator) if part.strip()]
    listed = isinstance(raw, list)
    values = raw if listed else [raw]
    names = {_name(value, where=where) for value in values if not _absent(value)}
    return tuple(sorted(names)), where, listed


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _name(value: Any, *, where: str) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    raise DataError(
        f"{where}: a label is text or a whole number, found {json.dumps(value, default=str)};"
        f" for example {EXAMPLE}"
    )


def _without_header(head: list[list[str]], keys: Keys) -> Sequence[str] | None:
    """Names for the columns of a table whose first line is data already."""
    first = {cell.strip() for cell in head[0]}
    named = {*TEXT_KEYS, *LABEL_KEYS, keys.text, keys.label} - {""}
    if first & named or any(len(cells) != 2 for cells in head):
        return None
    left, right = (len({cells[column] for cells in head}) for column in (0, 1))
    if left == right:
        return None
    text, label = keys.text or "text", keys.label or "label"
    return (text, label) if right < left else (label, text)
