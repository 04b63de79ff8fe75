"""manifest.json: what an artefact is, written last, checked against its own id when read."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rung.errors import ArtefactError
from rung.store.artefact import KINDS, Artefact, FileEntry, digest
from rung.store.durable import hash_file, list_files, write_atomic

FILE = "manifest.json"


def artefact_id(
    *,
    kind: str,
    config: Mapping[str, Any],
    parents: Mapping[str, str],
    files: Mapping[str, FileEntry],
) -> str:
    """sha256 over what an artefact *is*; when, where and how fast it was made stays outside."""
    return digest(
        {
            "kind": kind,
            "config": dict(config),
            "parents": dict(parents),
            "files": {name: asdict(entry) for name, entry in files.items()},
        }
    )


def write_manifest(folder: Path, artefact: Artefact) -> None:
    """Write manifest.json into `folder`. Its presence says that all other files are complete."""
    assert artefact.kind in KINDS, artefact.kind
    content = {
        "id": artefact.id,
        "kind": artefact.kind,
        "stage": artefact.stage,
        "config": artefact.config,
        "parents": artefact.parents,
        "files": {name: asdict(entry) for name, entry in sorted(artefact.files.items())},
        "notes": artefact.notes,
    }
    # Hashed values are sorted by the digest itself; here a person reads, so keep the order.
    write_atomic(folder / FILE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_manifest(folder: Path) -> Artefact:
    """The artefact in `folder`; ArtefactError when the manifest is missing, garbled or altered."""
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        artefact = Artefact(
            id=content["id"],
            kind=content["kind"],
            path=folder,
            stage=content["stage"],
            config=content["config"],
            parents=content["parents"],
            files={name: FileEntry(**entry) for name, entry in content["files"].items()},
            notes=content["notes"],
        )
    except FileNotFoundError:
        raise ArtefactError(f"{folder} has no {FILE}: it was not written to the end") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtefactError(f"{path} is damaged ({error}); {way_out()}") from None
    expected = artefact_id(
        kind=artefact.kind,
        config=artefact.config,
        parents=artefact.parents,
        files=artefact.files,
    )
    if artefact.id != expected:
        raise ArtefactError(
            f"{path} says id {artefact.id[:12]} but its contents hash to {expected[:12]}: "
            f"it was altered; {way_out()}"
        )
    return artefact


def find_damage(artefact: Artefact, *, full: bool = True) -> list[str]:
    """One sentence per file that is not what the manifest says; [] when all is well.

    full: hash every file; otherwise look at presence and size only.
    """
    damage = []
    for name, entry in artefact.files.items():
        path = artefact.path / name
        if not path.is_file():
            damage.append(f"{name} is missing")
        elif (size := path.stat().st_size) != entry.size:
            damage.append(f"{name} has {size} bytes, it was written with {entry.size}")
        elif full and hash_file(path).sha256 != entry.sha256:
            damage.append(f"{name} has other bytes than when it was written (same size)")
    extra = set(list_files(artefact.path)) - set(artefact.files) - {FILE}
    return damage + [f"{name} was added later" for name in sorted(extra)]


def way_out() -> str:
    return (
        "`rung gc --damaged` removes what is damaged; "
        "running the recipe again builds it anew with the same id"
    )
