"""Garbage: artefacts that no name leads to, damaged ones, and work that nobody will finish."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from rung.errors import ArtefactError
from rung.store.manifest import find_damage, read_manifest
from rung.store.store import Store


@dataclass(frozen=True)
class Removal:
    """A folder to remove, why, and the bytes it frees."""

    path: Path
    reason: str
    size: int


def find_garbage(store: Store, *, damaged: bool = False, unfinished: bool = False) -> list[Removal]:
    """What `sweep` would remove.

    damaged: also artefacts whose bytes changed (hashes everything). unfinished: also the work
    folders of stages that were killed or failed; a run with the same recipe could resume them.
    """
    keep = reachable(store)
    garbage = []
    objects = store.root / "objects"
    for folder in sorted(objects.iterdir()) if objects.is_dir() else []:
        if damaged and (problem := _problem(folder)):
            garbage.append(_removal(folder, f"damaged: {problem}"))
        elif folder.name not in keep:
            garbage.append(_removal(folder, "no name leads to it"))
    work = store.root / "work"
    if unfinished and work.is_dir():
        garbage += [_removal(p, "unfinished work") for p in sorted(work.iterdir())]
    return garbage


def sweep(
    store: Store, *, dry_run: bool, damaged: bool = False, unfinished: bool = False
) -> list[Removal]:
    """Remove garbage (or only list it); refused while a run uses the store."""
    if not store.root.is_dir():
        return []
    with store.exclusive():
        garbage = find_garbage(store, damaged=damaged, unfinished=unfinished)
        for item in [] if dry_run else garbage:
            # The manifest goes first: a removal cut short leaves no artefact that looks whole.
            (item.path / "manifest.json").unlink(missing_ok=True)
            shutil.rmtree(item.path)
        if not dry_run:
            _drop_records(store)
    return garbage


def reachable(store: Store) -> set[str]:
    """Ids of named artefacts and all their ancestors."""
    waiting = list(store.names().values())
    seen: set[str] = set()
    while waiting:
        id = waiting.pop()
        if id in seen:
            continue
        seen.add(id)
        try:
            waiting += read_manifest(store.root / "objects" / id).parents.values()
        except ArtefactError:
            continue  # already gone or damaged: nothing below it can be followed
    return seen


def _drop_records(store: Store) -> None:
    """Forget the recipe keys and metrics of artefacts that are gone."""
    for index in sorted((store.root / "built").glob("[0-9a-f]*")):
        if not (store.root / "objects" / index.read_text().strip()).is_dir():
            shutil.rmtree(store.root / "runs" / index.name, ignore_errors=True)
            index.unlink()


def _problem(folder: Path) -> str:
    try:
        return "; ".join(find_damage(read_manifest(folder)))
    except ArtefactError as error:
        return str(error)


def _removal(folder: Path, reason: str) -> Removal:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Removal(path=folder, reason=reason, size=size)
