"""Runs of a store as records: at work, stopped, failed, done; read from what stages write."""

import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rung.store.artefact import Artefact
from rung.store.catalogue import View, built_at
from rung.store.journal import ABOUT, SAID, STATUS
from rung.store.runlog import FILE, SAMPLES

State = Literal["running", "saving", "silent", "stopped", "failed", "done"]
ACTIVE = ("running", "saving", "silent")

_ALIVE = 15.0  # seconds: the meter of a stage at run leaves a mark every two
_TAIL = 256 * 1024  # bytes at the end of a long record that are read for the last lines


@dataclass(frozen=True)
class Run:
    """One stage, at work or done.

    key: its recipe key. name: what its artefact is or will be called. folder: where its records
    are. artefact: id, once it is done. total: None where nobody knows how much there is to do.
    begun: (done, seconds since 1970) at the first update of this session.
    started, updated: seconds since 1970, 0 when unknown.

    running: it left a mark in the last seconds. saving: it ended well and its files are being
    hashed. silent: its process is there, or on another machine, but left no mark for a while.
    stopped: interrupted or killed; the same command goes on. failed: it ended by `error`.
    """

    key: str
    name: str
    stage: str
    kind: str
    state: State
    folder: Path
    artefact: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    parents: Mapping[str, str] = field(default_factory=dict)
    started: float = 0.0
    updated: float = 0.0
    seconds: float = 0.0
    memory_gb: float = 0.0
    peak_gb: float = 0.0
    task: str = ""
    done: float = 0.0
    total: float | None = None
    unit: str = ""
    begun: tuple[float, float] | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def short_key(self) -> str:
        return self.key[:16]

    @property
    def active(self) -> bool:
        return self.state in ACTIVE

    @property
    def share(self) -> float | None:
        """Of the task at hand, 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else None

    @property
    def seconds_left(self) -> float | None:
        """Of the task at hand, at the pace of this session; None when nobody can say."""
        if self.state != "running" or not self.total or self.begun is None:
            return None
        before, then = self.begun
        gone, made = self.updated - then, self.done - before
        return gone / made * max(0.0, self.total - self.done) if made > 0 and gone > 0 else None

    @property
    def metrics(self) -> Path:
        return self.folder / FILE

    @property
    def has_metrics(self) -> bool:
        return self.metrics.is_file() and self.metrics.stat().st_size > 0

    def said(self, last: int = 200) -> list[dict[str, Any]]:
        """The last lines said: {"time", "done", "text"}."""
        return read_tail(self.folder / SAID, last)

    def samples(self, last: int = 12) -> list[dict[str, Any]]:
        """What the model wrote last: {"step", "prompt", "text", "score"}."""
        return read_tail(self.folder / SAMPLES, last)


def read_runs(view: View) -> list[Run]:
    """Those at work or left unfinished first, then what is done, each newest first."""
    waiting = sorted(unfinished(view), key=lambda run: -run.updated)
    known = view.artefacts.values()
    done = sorted(known, key=lambda a: (built_at(a), a.id), reverse=True)
    return waiting + [finished(view, artefact) for artefact in done]


def find_run(view: View, key: str) -> Run | None:
    """The run with this recipe key, or this beginning of one (at least 8 digits)."""
    if len(key) < 8 or not all(c in "0123456789abcdef" for c in key):
        return None
    for run in unfinished(view):
        if run.key.startswith(key):
            return run
    artefact = view.of_key(key)
    if artefact is None:
        some = view.artefacts.values()
        found = [a for a in some if str(a.notes.get("recipe_key")).startswith(key)]
        artefact = found[0] if len(found) == 1 else None
    return None if artefact is None else finished(view, artefact)


def unfinished(view: View, *, now: float | None = None) -> list[Run]:
    """What lies in work/: at run, killed or failed. Stages of older versions left no journal."""
    folder = view.store.root / "work"
    try:
        keys = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    found = (_read_work(folder / key, now=now or time.time()) for key in keys)
    return [run for run in found if run is not None]


def _read_work(folder: Path, *, now: float) -> Run | None:
    run = folder / "run"
    about, status, cost = (_read_json(run / n) for n in (ABOUT, STATUS, ".cost"))
    if not about:
        return None
    marked = max(_modified(run / name) for name in (STATUS, ".cost", FILE))
    state = _judge(about, status, silent=now - marked)
    return Run(
        key=folder.name,
        name=str(about.get("name", "")),
        stage=str(about.get("stage", "")),
        kind=str(about.get("kind", "")),
        state=state,
        folder=run,
        config=about.get("config") or {},
        parents=about.get("parents") or {},
        started=_number(about.get("started")),
        updated=marked,
        seconds=_number(cost.get("seconds")),
        memory_gb=_number(cost.get("rss_gb")),
        peak_gb=_number(cost.get("peak_rss_gb")),
        task=str(status.get("task", "")),
        done=_number(status.get("done")),
        total=_number(status.get("total")) or None,
        unit=str(status.get("unit", "")),
        begun=_pair(status.get("begun")),
        figures=status.get("figures") or {},
        error=str(status.get("error", "")),
    )


def _judge(about: Mapping[str, Any], status: Mapping[str, Any], *, silent: float) -> State:
    said = status.get("state", "running")
    if said in ("stopped", "failed"):
        return "stopped" if said == "stopped" else "failed"
    here = about.get("host") == platform.node()
    if here and not _exists(int(_number(about.get("pid")))):
        return "stopped"  # killed: it could not say so itself
    if said == "finished":
        return "saving"
    return "running" if silent < _ALIVE else "silent"


def _exists(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def finished(view: View, artefact: Artefact) -> Run:
    """The run that built `artefact`, from its notes."""
    notes = artefact.notes
    key = str(notes.get("recipe_key", ""))
    ended = _seconds_since_1970(built_at(artefact))
    seconds = _number(notes.get("seconds"))
    peak = _number(notes.get("peak_rss_gb"))
    return Run(
        key=key or artefact.id,
        name=view.title(artefact.id),
        stage=artefact.stage,
        kind=artefact.kind,
        state="done",
        folder=view.store.root / "runs" / (key or "none"),
        artefact=artefact.id,
        config=artefact.config,
        parents=artefact.parents,
        started=max(0.0, ended - seconds),
        updated=ended,
        seconds=seconds,
        memory_gb=peak,
        peak_gb=peak,
        figures={k: v for k, v in (notes.get("figures") or {}).items() if v is not None},
    )


def read_tail(path: Path, last: int) -> list[dict[str, Any]]:
    """The last whole JSON lines of `path`; what is torn or garbled is left out."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    lines = text[: text.rfind("\n") + 1].splitlines()
    rows = []
    for line in lines[-last:]:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and value == value else 0.0


def _pair(value: Any) -> tuple[float, float] | None:
    return (float(value[0]), float(value[1])) if isinstance(value, list) and value[1:] else None


def _seconds_since_1970(time_text: str) -> float:
    try:
        return datetime.strptime(time_text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0
