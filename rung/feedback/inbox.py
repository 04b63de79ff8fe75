"""The inbox: events of the chat page in a file that only grows, on disk before acknowledged.

One JSON object a line. Several processes may add at the same time; a reader needs no lock.
"""

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from rung.errors import DataError
from rung.feedback.events import Event, parse_event
from rung.store.artefact import canonical_json
from rung.store.durable import sync_folder


def inbox_path(root: Path) -> Path:
    """Where the inbox of the store at `root` lies."""
    return root / "feedback" / "inbox.jsonl"


class Inbox:
    """Adds each event once, whatever is sent twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._lines: dict[str, tuple[int, int]] = {}  # key -> where its line begins and ends
        self._end = 0  # end of the last whole line that was read
        self._inode = 0

    def add(self, event: Event) -> Event:
        """The event as stored: `event`, or the earlier one with its key. On disk on return."""
        with self._lock, self._open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._catch_up(file)
            if event.key in self._lines:
                return self._read(file, event.key)
            line = (canonical_json(event.to_json()) + "\n").encode()
            start = self._end
            file.truncate(start)  # a line that a kill cut short was never acknowledged
            try:
                _write(file, line)
                os.fsync(file.fileno())
            except OSError:
                file.truncate(start)
                raise
            self._end = start + len(line)
            self._lines[event.key] = (start, self._end)
        return event

    def find(self, key: str) -> Event | None:
        """The stored event with this key, if there is one."""
        if not self.path.exists():
            return None
        with self._lock, self._open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._catch_up(file)
            return self._read(file, key) if key in self._lines else None

    def events(self) -> Iterator[Event]:
        """Every event in the order of their coming; a half line at the end is not there yet."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.endswith(b"\n"):
                    where = f"{self.path}:{number}"
                    yield parse_event(_load(line, where=where), where=where)

    def _open(self) -> FileIO:
        """For reading and appending. Conversations are private: the owner alone may read them."""
        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        if new:
            sync_folder(self.path.parent)
            sync_folder(self.path.parent.parent)
        return FileIO(handle, "r+")

    def _catch_up(self, file: FileIO) -> None:
        """Take in the whole lines that other processes added since."""
        now = os.fstat(file.fileno())
        if now.st_ino != self._inode or now.st_size < self._end:  # somebody put it away
            self._lines, self._end, self._inode = {}, 0, now.st_ino
        file.seek(self._end)
        for line in file.read().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            event = _load(line, where=f"{self.path} at byte {self._end}")
            start, self._end = self._end, self._end + len(line)
            self._lines.setdefault(str(event.get("key")), (start, self._end))

    def _read(self, file: FileIO, key: str) -> Event:
        start, end = self._lines[key]
        file.seek(start)
        where = f"{self.path} at byte {start}"
        return parse_event(_load(file.read(end - start), where=where), where=where)


def _write(file: FileIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _load(line: bytes, *, where: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}); remove that line") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: an event is a JSON object; remove that line")
    return row
