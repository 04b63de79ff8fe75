"""From the tokens of a sample to the text a client sees: whole characters, nothing after a stop."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from rung.engine.detokenise import Detokeniser

T = TypeVar("T")


class Text(NamedTuple, Generic[T]):
    """What may be shown now: text, what came along with its tokens, and the stop text that was met
    (then nothing follows)."""

    text: str
    notes: list[T]
    stop: str | None


class TextStream(Generic[T]):
    """Text of one sample, token by token, each with a note that is given back with its text.

    What may be the beginning of a stop text is held back until it is known not to be one.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str]) -> None:
        self._pieces = Detokeniser(decode)
        self._stop = stop
        self._held = ""
        self._given = 0  # characters that are out
        self._covered = 0  # characters that are out with the notes of their tokens
        self._notes: deque[tuple[int, T]] = deque()  # (where the token's text ends, note)

    def push(self, token: int, note: T) -> Text[T]:
        """The text that `token` completes."""
        self._held += self._pieces.push(token)
        end = self._given + len(self._held) + int(self._pieces.holding)
        self._notes.append((end, note))
        found = self._find_stop()
        if found is not None:
            return found
        return self._give(len(self._held) - self._may_stop())

    def finish(self) -> Text[T]:
        """What was held back, when no more tokens come."""
        self._held += self._pieces.finish()
        found = self._find_stop()
        if found is not None:
            return found
        text, notes, _ = self._give(len(self._held))
        notes += [note for _, note in self._notes]
        self._notes.clear()
        return Text(text, notes, None)

    def _give(self, count: int) -> Text[T]:
        text, self._held = self._held[:count], self._held[count:]
        self._given += count
        notes = []
        while self._notes and self._notes[0][0] <= self._given:
            self._covered, note = self._notes.popleft()
            notes.append(note)
        return Text(text, notes, None)

    def _find_stop(self) -> Text[T] | None:
        """The text before the first stop text, if one is there; of two at one place the longer."""
        met = [(at, -len(stop), stop) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if not met:
            return None
        at, _, stop = min(met)
        given = self._give(at)
        self._held = ""
        if self._notes and self._covered < self._given:  # a token that the stop cuts in two
            given.notes.append(self._notes.popleft()[1])
        return given._replace(stop=stop)

    def _may_stop(self) -> int:
        """Characters at the end that a stop text may begin with."""
        most = max((len(stop) for stop in self._stop), default=1) - 1
        for count in range(min(most, len(self._held)), 0, -1):
            end = self._held[-count:]
            if any(stop.startswith(end) for stop in self._stop):
                return count
        return 0
