"""Checkpoints: step folders that are whole or absent, verified by hash when read."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rung.errors import ResourceError
from rung.store.durable import hash_tree, sync_folder, sync_tree, write_atomic

_STEP = re.compile(r"step-(\d+)")
FILE = "manifest.json"


@dataclass(frozen=True)
class Found:
    """The newest valid checkpoint (path None and step 0 without one), and why newer ones were
    passed over (one sentence each)."""

    step: int
    path: Path | None
    skipped: tuple[str, ...] = ()


def save(folder: Path, step: int, write: Callable[[Path], None], *, keep: int = 2) -> Path:
    """Write a checkpoint by `write(path of an empty folder)`; older ones beyond `keep` go.

    They go only after the new one verifies. Raises ResourceError when the disk is full; the
    checkpoints that were there stay.
    """
    assert keep >= 1, keep
    folder.mkdir(parents=True, exist_ok=True)
    target, temporary = folder / f"step-{step}", folder / f"step-{step}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        write(temporary)
        files = {name: asdict(entry) for name, entry in hash_tree(temporary).items()}
        write_atomic(temporary / FILE, json.dumps({"step": step, "files": files}, sort_keys=True))
        sync_tree(temporary)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(folder).free / 1e9
        raise ResourceError(
            f"disk full while writing checkpoint {step} to {folder} ({free:.2f} GB free); "
            "older checkpoints are kept: free some space and run the same command again"
        ) from error
    _put(temporary, target)
    if (problem := _problem(target)) is None:
        _drop_old(folder, step=step, keep=keep)
        return target
    raise ResourceError(
        f"checkpoint {target} does not read back as it was written ({problem}); "
        "older checkpoints are kept: check this disk"
    )


def latest_valid(folder: Path) -> Found:
    """The newest checkpoint whose files all hash to their manifest."""
    skipped: list[str] = []
    for step in sorted(_steps(folder), reverse=True):
        for path in (folder / f"step-{step}", folder / f"step-{step}.old"):
            if not path.is_dir():
                continue
            if (problem := _problem(path)) is None:
                return Found(step=step, path=path, skipped=tuple(skipped))
            skipped.append(f"checkpoint {path.name} passed over: {problem}")
    return Found(step=0, path=None, skipped=tuple(skipped))


def _put(temporary: Path, target: Path) -> None:
    """Rename into place. A checkpoint of the same step steps aside first and stays findable."""
    aside = target.with_name(target.name + ".old")
    if target.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(target, aside)
    os.rename(temporary, target)
    sync_folder(target.parent)


def _drop_old(folder: Path, *, step: int, keep: int) -> None:
    for path in folder.glob("step-*.*"):
        if path.suffix in (".tmp", ".old"):
            shutil.rmtree(path, ignore_errors=True)
    older = sorted(s for s in _steps(folder) if s < step)
    for old in older[: max(0, len(older) - (keep - 1))]:
        shutil.rmtree(folder / f"step-{old}", ignore_errors=True)


def _steps(folder: Path) -> set[int]:
    paths = folder.iterdir() if folder.is_dir() else iter(())
    matches = (_STEP.fullmatch(path.name.removesuffix(".old")) for path in paths)
    return {int(match.group(1)) for match in matches if match}


def _problem(path: Path) -> str | None:
    """Why a checkpoint cannot be used, or None."""
    try:
        manifest = json.loads((path / FILE).read_text(encoding="utf-8"))
        recorded = manifest["files"]
    except FileNotFoundError:
        return "it has no manifest"
    except (ValueError, KeyError, TypeError):
        return "its manifest is damaged"
    found = {name: asdict(entry) for name, entry in hash_tree(path, skip=FILE).items()}
    wrong = sorted(n for n in found.keys() | recorded.keys() if found.get(n) != recorded.get(n))
    return f"{', '.join(wrong)} missing or changed" if wrong else None
