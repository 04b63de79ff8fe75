"""Logged figures as columns, read as they grow and thinned for a screen."""

import json
import os
import threading
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

Axis = Literal["step", "tokens", "seconds"]
_NAN = float("nan")


@dataclass(frozen=True)
class Line:
    """Points of one curve, thinned where there were too many.

    num: how many there were. mean: of each bucket, where it was thinned; else empty.

    Where a curve has more points than asked for, (x, y) keeps the lowest and the highest of each
    bucket, so that no spike is lost; lines drawn through them show the spread.
    """

    x: list[float]
    y: list[float]
    num: int
    mean_x: list[float]
    mean: list[float]


@dataclass(frozen=True)
class Reading:
    """What is new since a cursor. whole: the cursor was of another file (a resumed run cuts its
    file back) or none: these are all rows, and what the reader had is no longer true."""

    cursor: str
    whole: bool
    rows: int
    lines: Mapping[str, Line]


class Curves:
    """The columns of a metrics.jsonl that may still grow. Safe to share between threads.

    A cursor is "<file>.<rows read>": the file's number on the disk, and how often it began anew.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self._columns: dict[str, array[float]] = {}
        self._offset = 0
        self._inode = 0
        self._starts = 0
        self._lock = threading.RLock()

    def refresh(self) -> None:
        """Read what was appended since the last call."""
        with self._lock:
            try:
                with self.path.open("rb") as file:
                    stat = os.fstat(file.fileno())
                    if self._is_another(stat):
                        self._start(stat)
                    if stat.st_size == self._offset:
                        return
                    file.seek(self._offset)
                    chunk = file.read()
            except FileNotFoundError:
                return
            whole = chunk.rfind(b"\n") + 1
            self._offset += whole
            for line in chunk[:whole].splitlines():
                self._add(line)

    def names(self) -> list[str]:
        """Every figure logged so far, in order of appearance; "step" is none."""
        with self._lock:
            return [name for name in self._columns if name != "step"]

    def read(
        self,
        names: Sequence[str] | None = None,
        *,
        axis: Axis = "step",
        cursor: str = "",
        points: int = 600,
    ) -> Reading:
        """The curves of `names` (None: all) from `cursor` on, thinned to about 2 x `points`."""
        with self._lock:
            self.refresh()
            file = f"{self._inode:x}-{self._starts}"
            known, _, seen = cursor.partition(".")
            whole = known != file or not seen.isdecimal() or int(seen) > self.rows
            lines = self.lines(
                self.names() if names is None else names,
                axis=axis,
                after=0 if whole else int(seen),
                points=points,
            )
            return Reading(f"{file}.{self.rows}", whole, self.rows, lines)

    def column(self, name: str) -> np.ndarray:
        """float64 [rows]; nan where a row lacks it or it was not finite."""
        with self._lock:
            kept = self._columns.get(name, array("d"))
            values = np.full(self.rows, np.nan)
            values[: len(kept)] = np.array(kept[: self.rows])
            return values

    def axis(self, axis: Axis) -> np.ndarray:
        """Where each row stands: its step, or tokens (seconds) of it and all before."""
        if axis == "step":
            return self.column("step")
        return np.nancumsum(self.column(axis))

    def lines(
        self, names: Sequence[str], *, axis: Axis = "step", after: int = 0, points: int = 600
    ) -> dict[str, Line]:
        """The curves of `names` from row `after` on, each in at most about 2 x `points` points."""
        x = self.axis(axis)[after:]
        found = {}
        for name in names:
            y = self.column(name)[after:]
            there = np.flatnonzero(np.isfinite(y) & np.isfinite(x))
            if len(there):
                found[name] = thin(x[there], y[there], buckets=points)
        return found

    def _is_another(self, stat: os.stat_result) -> bool:
        return stat.st_ino != self._inode or stat.st_size < self._offset

    def _start(self, stat: os.stat_result) -> None:
        self._starts += 1
        self._inode = stat.st_ino
        self.rows, self._offset, self._columns = 0, 0, {}

    def _add(self, line: bytes) -> None:
        try:
            row = json.loads(line)
        except ValueError:
            return
        if not isinstance(row, dict):
            return
        for name, value in row.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue  # "nan" and "inf" too: a gap in the curve
            column = self._columns.setdefault(name, array("d"))
            if len(column) < self.rows:
                column.extend([_NAN] * (self.rows - len(column)))
            column.append(value)
        self.rows += 1


def thin(x: np.ndarray, y: np.ndarray, *, buckets: int) -> Line:
    """At most about 2 x `buckets` points of a curve of finite values: see `Line`."""
    n = len(x)
    if n <= 2 * buckets:
        return Line(_floats(x), _floats(y), n, [], [])
    size = -(-n // buckets)
    full = -(-n // size)
    padded = np.full(full * size, np.nan)
    padded[:n] = y
    rows = padded.reshape(full, size)
    start = np.arange(full) * size
    low, high = start + np.nanargmin(rows, axis=1), start + np.nanargmax(rows, axis=1)
    chosen = np.unique(np.concatenate(([0], low, high, [n - 1])))
    middle = np.minimum(start + size // 2, n - 1)
    mean = np.nanmean(rows, axis=1)
    return Line(
        _floats(x[chosen]),
        _floats(y[chosen]),
        n,
        _floats(x[middle]),
        _floats(mean),
    )


def _floats(values: np.ndarray) -> list[float]:
    """Nine digits tell steps apart, and the answer stays small."""
    return [float(f"{value:.9g}") for value in values.tolist()]
