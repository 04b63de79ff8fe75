"""From the engine's thread to the event loop: one wake-up for all pieces of a step."""

import asyncio
import contextlib
import time
from collections import deque
from typing import Any

PAUSE = 0.02  # seconds between two wake-ups: text that comes faster, nobody reads token by token


class Inbox:
    """What waits for one coroutine."""

    def __init__(self) -> None:
        self._items: list[Any] = []
        self._event = asyncio.Event()

    def add(self, item: Any) -> None:
        """Only on the event loop's thread."""
        self._items.append(item)
        self._event.set()

    async def take(self, *, timeout: float | None = None) -> list[Any]:
        """All that waits, at least one; [] when nothing came within `timeout` seconds."""
        if not self._items:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):  # wait_for would make a task each time
                    await self._event.wait()
        self._event.clear()
        items, self._items = self._items, []
        return items


class Bridge:
    """Pieces gather until all of a step are there. A wake-up for each would cost a system call, in
    which the event loop takes the interpreter from the engine in the middle of its step."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._items: deque[tuple[Inbox, Any]] = deque()
        self._waking = self._urgent = False
        self._woke = 0.0  # seconds, monotonic

    def post(self, inbox: Inbox, item: Any, *, urgent: bool) -> None:
        """Put `item` into `inbox` with the next `wake`; from any thread. urgent: it is not followed
        by others."""
        self._items.append((inbox, item))
        self._urgent = self._urgent or urgent

    def wake(self) -> None:
        """Hand out what was posted, unless it can wait for what the next step makes."""
        now = time.monotonic()
        if self._items and not self._waking and (self._urgent or now - self._woke > PAUSE):
            self._waking, self._urgent, self._woke = True, False, now
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is waiting
                self._loop.call_soon_threadsafe(self._hand_out)

    def _hand_out(self) -> None:
        self._waking = False  # before the queue is read: what comes later wakes again
        while self._items:
            inbox, item = self._items.popleft()
            inbox.add(item)
