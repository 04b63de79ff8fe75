"""Durable writes: a file or folder is whole under its name, or not there at all."""

import hashlib
import os
from pathlib import Path

from rung.errors import ArtefactError
from rung.store.artefact import FileEntry

_CHUNK = 1 << 20


def sync_folder(folder: Path) -> None:
    """Make the entries of `folder` (creations, renames) survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """fsync every file and folder below `folder`, deepest first, and `folder` itself."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync_file(Path(parent, name))
        sync_folder(Path(parent))


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text`: after a kill it holds the old or the new text, never a part.

    The temporary name is fixed, so a leftover of a killed writer is overwritten by the next.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def hash_file(path: Path) -> FileEntry:
    """sha256 and size of the bytes of `path`."""
    sha = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha.update(chunk)
            size += len(chunk)
    return FileEntry(sha256=sha.hexdigest(), size=size)


def list_files(folder: Path) -> list[str]:
    """Relative paths (with "/") of all files below `folder`, sorted.

    Raises ArtefactError for a link: its target lies outside the artefact and can change.
    """
    found = []
    for parent, folders, names in os.walk(folder):
        for name in [*names, *folders]:
            path = Path(parent, name)
            if path.is_symlink():
                raise ArtefactError(
                    f"{path} is a symbolic link; an artefact holds plain files only: copy the file"
                )
        found += [Path(parent, name).relative_to(folder).as_posix() for name in names]
    return sorted(found)


def hash_tree(folder: Path, *, skip: str = "") -> dict[str, FileEntry]:
    """`hash_file` of every file below `folder` by relative path; `skip` is left out."""
    return {name: hash_file(folder / name) for name in list_files(folder) if name != skip}
