"""Progress for a person: a bar with ETA on a terminal, plain lines everywhere else."""

import math
import sys
import time
from typing import IO, Any

from rung.store.context import Progress

_EVERY = 5.0  # seconds between two plain lines


def make_progress(stream: IO[str] | None = None) -> Progress:
    """The one that fits `stream` (default stdout)."""
    stream = stream or sys.stdout
    return TerminalProgress(stream) if stream.isatty() else PlainProgress(stream)


def show_figures(figures: dict[str, float | str]) -> str:
    """loss=2.10 tokens/s=4,000"""
    return " ".join(f"{k.replace('_per_', '/')}={_short(v)}" for k, v in figures.items())


def _short(value: float | str) -> str:
    if isinstance(value, str):
        return value
    whole = math.isfinite(value) and (abs(value) >= 1000 or float(value).is_integer())
    return f"{value:,.0f}" if whole else f"{value:.4g}"


def show_seconds(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class PlainProgress:
    """One line every few seconds; nothing is ever redrawn."""

    def __init__(self, stream: IO[str], *, every: float = _EVERY):
        self._stream = stream
        self._every = every
        self._title, self._unit = "", ""
        self._total: float | None = None
        self._start = self._last = time.monotonic()

    def start(self, title: str, *, total: float | None = None, unit: str = "") -> None:
        self._title, self._unit, self._total = title, unit, total
        self._start = self._last = time.monotonic()

    def update(self, done: float, **figures: float | str) -> None:
        now = time.monotonic()
        if now - self._last < self._every:
            return
        self._last = now
        of = f"/{self._total:,.0f}" if self._total else ""
        left = ""
        if self._total and done > 0:
            remaining = (now - self._start) * max(0.0, self._total / done - 1)
            left = f" {show_seconds(remaining)} left"
        line = f"  {self._title}: {done:,.0f}{of} {self._unit}".rstrip()
        self.say(f"{line}{left} {show_figures(figures)}".rstrip())

    def say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)

    def finish(self) -> None:
        self._title = ""


class TerminalProgress:
    """A rich bar with ETA; lines that are said stay above it."""

    def __init__(self, stream: IO[str]):
        from rich.console import Console  # lazy: `rung --help` does not need it

        self._console = Console(file=stream, highlight=False, markup=False)
        self._bar: Any = None
        self._task: Any = None

    def start(self, title: str, *, total: float | None = None, unit: str = "") -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self.finish()
        self._bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            transient=True,
        )
        whole = None if total is None else int(total)
        self._task = self._bar.add_task(title, total=whole, figures="")
        self._bar.start()

    def update(self, done: float, **figures: float | str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=int(done), figures=show_figures(figures))

    def say(self, line: str) -> None:
        self._console.print(line)

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
