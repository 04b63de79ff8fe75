"""Documents from the user's own files: text, markdown, html, jsonl, parquet, Python; also gz."""

import gzip
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pydantic

from rung.config import Config, did_you_mean
from rung.errors import DataError
from rung.text.decode import decode
from rung.text.record import Document

PIECE_CHARS = 50_000  # a longer text file becomes several documents, cut at paragraphs
SUFFIXES = (".txt", ".md", ".html", ".htm", ".jsonl", ".parquet", ".py")

_OTHER_STAGES = {
    "dataset": ("messages", "conversations", "instruction", "prompt", "completion", "response"),
    "feedback": ("chosen", "rejected", "ranks", "ranking"),
}


class Files(Config):
    """Which files to read, and how."""

    folder: str | None = pydantic.Field(None, description="read every known file below it")
    files: tuple[str, ...] = pydantic.Field((), description="read these files")
    domain: str | None = pydantic.Field(
        None, description='name in figures; None: the name of the folder, or "files"'
    )
    text_key: str = pydantic.Field("text", description="key of the text in .jsonl and .parquet")
    encoding: str = pydantic.Field(
        "auto", description='of text files; "auto": byte order mark, UTF-8, else Windows-1252'
    )


class FileDocs(NamedTuple):
    """documents: in path order. skipped: why -> files. encodings: files by encoding."""

    documents: list[Document]
    skipped: dict[str, list[str]]
    encodings: dict[str, int]


def files_fingerprint(source: Files) -> list[list[str | int]]:
    """Name, size and time of change of every file that would be read."""
    found, _ = _find(source)
    return [[name, path.stat().st_size, path.stat().st_mtime_ns] for name, path in found]


def read_files(source: Files) -> FileDocs:
    """All documents of `source`. DataError names what is missing, unreadable or of no known shape.

    A text file longer than PIECE_CHARS is cut at paragraphs; its pieces share a group. A row of
    .jsonl or .parquet is a document and a group of its own.
    """
    found, skipped = _find(source)
    domain = source.domain
    if domain is None:
        domain = Path(source.folder).resolve().name if source.folder else "files"
    documents: list[Document] = []
    encodings: Counter[str] = Counter()
    for name, path in found:
        data = _read_bytes(path)
        suffix = _suffix(path)
        if suffix == ".parquet":
            documents += _parquet(data, name, path, source=source, domain=domain)
            continue
        text, encoding = decode(data, encoding=source.encoding, where=str(path))
        if text is None:
            skipped.setdefault("binary", []).append(name)
            continue
        encodings[encoding] += 1
        if suffix == ".jsonl":
            documents += _jsonl(text, name, path, source=source, domain=domain)
        else:
            if suffix in (".html", ".htm"):
                text = _html_extractor(path)(text)
            documents += _pieces(text, name, domain=domain)
    return FileDocs(documents, skipped, dict(sorted(encodings.items())))


def _suffix(path: Path) -> str:
    return Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower()


def _find(source: Files) -> tuple[list[tuple[str, Path]], dict[str, list[str]]]:
    if source.folder is None:
        listed = [Path(file).expanduser() for file in source.files]
        missing = [str(path) for path in listed if not path.is_file()]
        if missing:
            if Path(missing[0]).expanduser().is_dir():
                raise DataError(f"source.files: {missing[0]} is a folder; use source.folder")
            raise DataError(f"no such file: {', '.join(missing)}{_nearest(missing[0])}")
        unknown = [str(path) for path in listed if _suffix(path) not in SUFFIXES]
        if unknown:
            raise DataError(f"cannot read {', '.join(unknown)}; known: {' '.join(SUFFIXES)} (.gz)")
        return [(str(name), path) for name, path in zip(source.files, listed, strict=True)], {}
    folder = Path(source.folder).expanduser()
    if not folder.is_dir():
        kind = "is a file; use source.files" if folder.is_file() else "no such folder"
        raise DataError(f"source.folder: {folder}: {kind}{_nearest(str(folder))}")
    found: list[tuple[str, Path]] = []
    skipped: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*"), key=lambda p: p.relative_to(folder).as_posix()):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or any(part.startswith(".") for part in name.split("/")):
            continue
        if _suffix(path) in SUFFIXES:
            found.append((name, path))
        else:
            skipped.setdefault(f"unknown extension {_suffix(path) or '(none)'}", []).append(name)
    if not found:
        seen = ", ".join(sorted(why.split()[-1] for why in skipped)) or "no files at all"
        raise DataError(
            f"{folder}: nothing to read; extensions seen: {seen}; known: {' '.join(SUFFIXES)} (.gz)"
        )
    return found, skipped


def _nearest(missing: str) -> str:
    parent = Path(missing).expanduser().parent
    if not parent.is_dir():
        return f"; its folder {parent} does not exist either"
    return did_you_mean(Path(missing).name, sorted(os.listdir(parent))[:20])


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError) as error:  # gzip.BadGzipFile is an OSError
        raise DataError(f"{path}: cannot be read: {error}") from error


def _html_extractor(path: Path) -> Callable[[str], str]:
    try:
        from resiliparse.extract.html2text import extract_plain_text
    except ImportError:
        raise DataError(
            f"{path}: reading HTML needs the extra 'html': pip install 'rung[html]'"
        ) from None
    return lambda text: extract_plain_text(text, main_content=True, preserve_formatting=True)


def _pieces(text: str, name: str, *, domain: str) -> Iterator[Document]:
    pieces: list[str] = []
    while len(text) > PIECE_CHARS:
        cut = text.rfind("\n\n", PIECE_CHARS // 2, PIECE_CHARS)
        cut = cut if cut > 0 else text.rfind("\n", PIECE_CHARS // 2, PIECE_CHARS)
        cut = cut if cut > 0 else PIECE_CHARS
        pieces.append(text[:cut])
        text = text[cut:]
    pieces.append(text)
    for index, piece in enumerate(pieces):
        id = name if len(pieces) == 1 else f"{name}#{index}"
        yield Document(id, piece, domain, name, {"source": name})


def _row(text: str, name: str, index: int, *, domain: str) -> Document:
    id = f"{name}:{index}"
    return Document(id, text, domain, id, {"source": name})


def _jsonl(text: str, name: str, path: Path, *, source: Files, domain: str) -> Iterator[Document]:
    key = source.text_key
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"{path}:{number}: not JSON ({error}): {line.strip()[:80]!r}; "
                f"one object a line is wanted, such as {_example(key)}"
            ) from None
        if not isinstance(row, dict) or not isinstance(row.get(key), str):
            raise DataError(f"{path}:{number}: {_misshapen(row, key)}")
        yield _row(row[key], name, number, domain=domain)


def _example(key: str) -> str:
    return json.dumps({key: "One document as plain text."})


def _misshapen(row: object, key: str) -> str:
    """What is wrong with a row, what it looks like, and the way out."""
    if not isinstance(row, dict):
        return f"a JSON {type(row).__name__}, not an object; wanted: {_example(key)}"
    keys = sorted(row)
    if key in row:
        kind = type(row[key]).__name__
        return f"{key!r} is {kind}, not a string; wanted: {_example(key)}"
    said = f"no key {key!r}; keys found: {', '.join(keys) or 'none'}"
    for stage, known in _OTHER_STAGES.items():
        if set(known) & set(keys):
            return f"{said}; this looks like input of the stage '{stage}'; wanted: {_example(key)}"
    texts = [k for k in keys if isinstance(row[k], str)]
    if texts:
        longest = max(texts, key=lambda k: len(row[k]))
        return f"{said}; set source.text_key: {longest}, or write lines such as {_example(key)}"
    return f"{said}; wanted: {_example(key)}"


def _parquet(
    data: bytes, name: str, path: Path, *, source: Files, domain: str
) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(io.BytesIO(data))
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file: {error}") from None
    columns: Sequence[str] = file.schema_arrow.names
    if source.text_key not in columns:
        raise DataError(
            f"{path}: no column {source.text_key!r}; columns found: {', '.join(columns)}; "
            "name the one with the text in source.text_key"
        )
    column = file.read([source.text_key]).column(0)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise DataError(f"{path}: column {source.text_key!r} is {column.type}, not text")
    for index, text in enumerate(column.to_pylist()):
        yield _row(text or "", name, index, domain=domain)
