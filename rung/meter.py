"""What a running stage costs: seconds and peak memory, also of its child processes."""

import json
import os
import resource
import sys
import threading
import time
from pathlib import Path

from rung.model.memory import used_memory
from rung.store.durable import write_atomic

_EVERY = 0.25  # seconds between two looks at memory
_SAVE_EVERY = 2.0  # seconds between two notes on disk; what a kill forgets at most


class Meter:
    """Context manager; `seconds` and `peak_rss_gb` add up over the sessions of a killed stage.

    Memory is the sum of resident sets of this process and its children, looked at four times a
    second: pages shared by forked children count more than once, so it errs upwards.
    """

    def __init__(self, run: Path):
        self._file = run / ".cost"
        before = self._read()
        self._seconds_before = before.get("seconds", 0.0)
        self.peak_rss_gb = before.get("peak_rss_gb", 0.0)
        self._rss_gb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="meter", daemon=True)

    @property
    def seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._start

    def __enter__(self) -> "Meter":
        self._start = time.monotonic()
        reset_peak()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        self.peak_rss_gb = max(self.peak_rss_gb, own_peak() / 1e9)

    def _watch(self) -> None:
        saved = time.monotonic()
        while not self._stop.wait(_EVERY):
            self._look()
            if time.monotonic() - saved > _SAVE_EVERY:
                saved = time.monotonic()
                self._save()

    def _look(self) -> None:
        self._rss_gb = tree_rss(os.getpid()) / 1e9
        self.peak_rss_gb = max(self.peak_rss_gb, self._rss_gb)

    def _save(self) -> None:
        figures = {
            "seconds": self.seconds,
            "peak_rss_gb": self.peak_rss_gb,
            "rss_gb": self._rss_gb,  # for who watches: rung/store/runs.py
        }
        try:
            write_atomic(self._file, json.dumps(figures))
        except OSError:
            return  # a full disk is the stage's to report; the cost of one session is lost

    def _read(self) -> dict[str, float]:
        try:
            return dict(json.loads(self._file.read_text()))
        except (OSError, ValueError):
            return {}


def tree_rss(pid: int) -> int:
    """Resident bytes of `pid` and all its descendants; 0 where /proc is not there."""
    total, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        total += used_memory(one) or 0
        try:
            for children in Path("/proc", str(one)).glob("task/*/children"):
                waiting += [int(child) for child in children.read_text().split()]
        except OSError:
            continue  # it ended while we looked
    return total


def reset_peak() -> None:
    """Let the kernel count this process's peak anew, so each stage has its own."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # then `own_peak` is the peak of the whole run: too high, never too low


def own_peak() -> int:
    """Peak resident bytes of this process since `reset_peak`."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
