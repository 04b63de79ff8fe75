"""From the engine's thread to the event loop: one wake-up for a burst of pieces."""

import asyncio
import contextlib
from collections import deque
from typing import Any


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
                await asyncio.wait_for(self._event.wait(), timeout)
        self._event.clear()
        items, self._items = self._items, []
        return items


class Bridge:
    """Waking an event loop from another thread costs a system call, more than the step of a small
    model: pieces that come while a wake-up is under way travel with it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._items: deque[tuple[Inbox, Any]] = deque()
        self._waking = False

    def post(self, inbox: Inbox, item: Any) -> None:
        """Put `item` into `inbox`; from any thread."""
        self._items.append((inbox, item))
        if not self._waking:
            self._waking = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is waiting
                self._loop.call_soon_threadsafe(self._hand_out)

    def _hand_out(self) -> None:
        self._waking = False  # before the queue is read: what comes later wakes again
        while self._items:
            inbox, item = self._items.popleft()
            inbox.add(item)
