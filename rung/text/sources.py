"""What `files` names: files, folders of them, Hugging Face data sets; each a source with a label.

A folder is read recursively in the order of its paths; hidden files are ignored, others of unknown
kind are passed over and named. A data set of the hub is fetched once and read from its cache.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rung.config import did_you_mean
from rung.errors import DataError
from rung.text.rows import SUFFIXES, Row, file_suffix, read_rows

# Descriptions of data sets that lie beside the data in the usual layouts.
_CATALOGUES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?")
_HUB_PATTERNS = [f"*{suffix}{gz}" for suffix in SUFFIXES for gz in ("", ".gz")]


@dataclass(frozen=True)
class Source:
    """One name of `files`.

    label: what its rows are called in figures ("chats" of my/chats.jsonl.gz). files: (name for
    messages, path). passed_over: files of the folder that are not read.
    """

    name: str
    label: str
    files: tuple[tuple[str, Path], ...]
    passed_over: tuple[str, ...] = field(default=())


def find_sources(names: Sequence[str], *, option: str = "files") -> list[Source]:
    """The sources that `names` stand for; DataError for one that is not there."""
    if not names:
        raise DataError(
            f"{option} is empty; name at least one, as in --set {option}=[my/rows.jsonl]"
        )
    return [_find(name, option=option) for name in names]


def fingerprint_sources(names: Sequence[str]) -> dict[str, str]:
    """sha256 of every file that is read: a changed, new or missing file is another input."""
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for source in (find_sources(names) if names else [])
        for name, path in source.files
    }


def source_rows(
    source: Source, *, example: str, columns: Mapping[str, str] | None = None
) -> Iterator[tuple[str, Row]]:
    """("my/chats.jsonl:3", row) of all files. DataError for a file without rows.

    columns: our key -> the key that the files use for it.
    """
    for name, path in source.files:
        number = 0
        for number, row in read_rows(path, example=example):
            where = f"{name}:{number}"
            yield where, _renamed(row, columns, where=where) if columns else row
        if not number:
            raise DataError(f"{name}: no usable rows: the file is empty; for example {example}")


def _renamed(row: Row, columns: Mapping[str, str], *, where: str) -> Row:
    missing = [theirs for theirs in columns.values() if theirs not in row]
    if missing:
        raise DataError(
            f"{where}: no key {missing[0]!r}, which `columns` names; "
            f"keys found: {', '.join(sorted(map(str, row)))}"
        )
    kept = {key: value for key, value in row.items() if key not in columns.values()}
    return {**kept, **{ours: row[theirs] for ours, theirs in columns.items()}}


def _find(name: str, *, option: str) -> Source:
    path = Path(name).expanduser()
    if path.is_file():
        if file_suffix(path) not in SUFFIXES:
            raise DataError(
                f"{name}: cannot read {file_suffix(path) or 'a file without extension'} here; "
                f"known: {' '.join(SUFFIXES)} (.gz); plain text goes into the stage `curate`"
            )
        return Source(name, _label(path), ((name, path),))
    if path.is_dir():
        return _folder(name, path, path)
    if _is_hub_id(name):
        return _hub(name)
    near = did_you_mean(path.name, sorted(os.listdir(path.parent))[:40]) if _has(path) else ""
    raise DataError(f"{name}: no such file (in {Path.cwd()}); check `{option}`{near}")


def _has(path: Path) -> bool:
    return path.parent.is_dir()


def _label(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return name.removesuffix(Path(name).suffix) or name


def _folder(name: str, path: Path, root: Path, *, only: str = "") -> Source:
    found: list[tuple[str, Path]] = []
    passed_over: list[str] = []
    for file in sorted(path.rglob("*"), key=lambda p: p.relative_to(path).as_posix()):
        inner = file.relative_to(root).as_posix()
        if not file.is_file() or any(part.startswith(".") for part in inner.split("/")):
            continue
        readable = file_suffix(file) in SUFFIXES and file.name not in _CATALOGUES
        if not readable or only not in inner:
            passed_over.append(inner)
        else:
            found.append((f"{name.rstrip('/')}/{inner}", file))
    if not found:
        seen = ", ".join(sorted({Path(p).suffix or p for p in passed_over})) or "no files at all"
        of = f" with {only!r} in their name" if only else ""
        raise DataError(
            f"{name}: no files{of} to read; seen: {seen}; known: {' '.join(SUFFIXES)} (.gz)"
        )
    return Source(name, path.resolve().name, tuple(found), tuple(passed_over))


def _is_hub_id(name: str) -> bool:
    """ "owner/name", perhaps with ":split": two words, no known extension, no folder `owner`."""
    owner, _, _ = name.partition("/")
    return (
        _HUB_ID.fullmatch(name) is not None
        and file_suffix(Path(name)) not in SUFFIXES
        and not Path(owner).exists()
    )


def _hub(name: str) -> Source:
    """The files of a data set on the hub: its train split where its files say so, or ":split"."""
    id, _, split = name.partition(":")
    root = _fetch(id)
    source = _folder(id, root, root, only=split)
    train = tuple(item for item in source.files if "train" in item[0].removeprefix(id))
    files = source.files if split or not train else train
    left = tuple(item[0] for item in source.files if item not in files)
    return Source(name, id.partition("/")[2], files, (*source.passed_over, *left))


def _fetch(id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(id, repo_type="dataset", allow_patterns=_HUB_PATTERNS))
    except (OSError, ValueError) as error:  # not there, gated, offline
        raise DataError(
            f"{id}: no such file or folder here, and the Hugging Face hub does not give a data set "
            f"of that name ({type(error).__name__}: offline, misspelt, or with access on request); "
            "download its files and name them or their folder"
        ) from None
