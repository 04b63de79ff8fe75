"""The journal of a stage at run: what it is, how far it is, what it said. Others read it live."""

import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rung.errors import Interrupted, RungError
from rung.store.context import Progress

ABOUT, STATUS, SAID = "stage.json", "status.json", "said.jsonl"
_EVERY = 1.0  # seconds between two looks that readers are given


class Journal:
    """A `Progress` that passes everything on and keeps it in the run folder.

    stage.json: what runs, written once a session.
        {"name": "quickstart/base", "stage": "pretrain", "kind": "model", "config": {...},
         "parents": {"corpus": "<id>"}, "host": "...", "pid": 4711, "started": 1760000000.0}
    status.json: replaced at most once a second, by renaming; not synced, for after a loss of
        power nobody runs any more.
        {"state": "running", "task": "pretrain", "done": 40, "total": 300, "unit": "step",
         "figures": {"loss": 2.1}, "begun": [20, 1760000000.0], "updated": 1760000050.0,
         "error": ""}
        begun: how much was done at the first update of this session (of a resumed run: not
        nothing) and when; the pace since says how long the rest takes.
    said.jsonl: a line a line said: {"time": 1760000000.0, "done": 40, "text": "..."}

    A journal that cannot be written (a full disk) is the stage's to report, never its end.
    """

    def __init__(self, run: Path, inner: Progress, about: Mapping[str, Any]) -> None:
        self._run, self._inner, self._about = run, inner, about
        self._now: dict[str, Any] = {"task": "", "done": 0.0, "total": None, "unit": ""}
        self._figures: dict[str, float | str] = {}
        self._begun: tuple[float, float] | None = None
        self._written = 0.0

    def __enter__(self) -> "Journal":
        here = {"host": platform.node(), "pid": os.getpid(), "started": time.time()}
        _replace(self._run / ABOUT, {**self._about, **here})
        self._write("running")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._write("finished")
        elif isinstance(error, (KeyboardInterrupt, Interrupted)):
            self._write("stopped", error=str(error))
        elif isinstance(error, RungError):
            self._write("failed", error=str(error))
        else:
            self._write("failed", error=f"{type(error).__name__}: {error}")

    def start(self, title: str, *, total: float | None = None, unit: str = "") -> None:
        self._inner.start(title, total=total, unit=unit)
        self._now = {"task": title, "done": 0.0, "total": total, "unit": unit}
        self._figures, self._begun = {}, None
        self._write("running")

    def update(self, done: float, **figures: float | str) -> None:
        self._inner.update(done, **figures)
        self._now["done"], self._figures = done, figures
        self._begun = self._begun or (done, time.time())
        if time.monotonic() - self._written >= _EVERY:
            self._write("running")

    def say(self, line: str) -> None:
        self._inner.say(line)
        row = {"time": round(time.time(), 3), "done": self._now["done"], "text": line}
        try:
            with (self._run / SAID).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError:
            return

    def finish(self) -> None:
        self._inner.finish()
        self._write("running")

    def _write(self, state: str, *, error: str = "") -> None:
        figures = {name: _to_json(value) for name, value in self._figures.items()}
        now = {"state": state, "begun": self._begun, "updated": time.time(), "error": error}
        _replace(self._run / STATUS, {**now, **self._now, "figures": figures})
        self._written = time.monotonic()


def _replace(path: Path, content: Mapping[str, Any]) -> None:
    temporary = path.parent / f".{path.name}.tmp"
    try:
        temporary.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        return


def _to_json(value: float | str) -> float | str:
    """As in metrics.jsonl: JSON has no number that is not finite."""
    finite = not isinstance(value, float) or abs(value) < float("inf")
    return value if finite else str(value)
