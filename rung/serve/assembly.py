"""Text into what a client reads: tool calls out of a growing answer, tokens beside it."""

import codecs
import json
from dataclasses import dataclass

from rung.text.json_rows import load_json

OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class ToolCall:
    """arguments: JSON text of an object, as OpenAI sends it."""

    name: str
    arguments: str


class ToolCallReader:
    """Splits a growing answer into text and tool calls (the Hermes convention of text/tools.py).

    A call comes when it is whole: what turns out to be none stays text, and nothing that a client
    has seen is taken back. White space before a call belongs to neither.
    """

    def __init__(self) -> None:
        self._held = ""  # outside: what may begin a call; inside: the call so far
        self._inside = False
        self._space = ""  # white space before the call
        self.num_calls = 0

    def push(self, text: str) -> list[str | ToolCall]:
        """What `text` completes, in order."""
        self._held += text
        found: list[str | ToolCall] = []
        while True:
            if self._inside:
                body, mark, rest = self._held.partition(CLOSE)
                if not mark:
                    return found
                found += self._close(body, CLOSE)
                self._held = rest
            else:
                free, mark, rest = self._held.partition(OPEN)
                if not mark:
                    keep = _may_begin_call(self._held)
                    if free := self._held[: len(self._held) - keep]:
                        found.append(free)
                    self._held = self._held[len(free) :]
                    return found
                text_before = free.rstrip()
                if text_before:
                    found.append(text_before)
                self._space = free[len(text_before) :]
                self._held = rest
            self._inside = not self._inside

    def finish(self) -> list[str | ToolCall]:
        """The rest. A call without its end counts if it is whole: many models stop right there."""
        held, self._held = self._held, ""
        if self._inside:
            self._inside = False
            return self._close(held, "")
        if not held or (self.num_calls and not held.strip()):
            return []
        return [held]

    def _close(self, body: str, end: str) -> list[str | ToolCall]:
        call = parse_call(body)
        if call is None:
            return [f"{self._space}{OPEN}{body}{end}"]
        self.num_calls += 1
        return [call]


def _may_begin_call(text: str) -> int:
    """Characters at the end of `text` that a call could begin with: space, part of <tool_call>."""
    part = next(
        (
            size
            for size in range(min(len(OPEN) - 1, len(text)), 0, -1)
            if text.endswith(OPEN[:size])
        ),
        0,
    )
    before = text[: len(text) - part]
    return part + len(before) - len(before.rstrip())


def parse_call(body: str) -> ToolCall | None:
    """{"name": "f", "arguments": {...}}, or None where it is anything else."""
    try:
        value = load_json(body.strip())
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if not isinstance(arguments, dict):
        return None
    return ToolCall(value["name"], json.dumps(arguments, ensure_ascii=False))


def read_answer(text: str) -> tuple[str | None, list[ToolCall]]:
    """(content, calls) of a whole answer: what a stream of it would give, joined."""
    reader = ToolCallReader()
    parts = [*reader.push(text), *reader.finish()]
    content = "".join(part for part in parts if isinstance(part, str))
    calls = [part for part in parts if isinstance(part, ToolCall)]
    return (content if content or not calls else None), calls


class TokenTexts:
    """The text of each token, so that the texts of all joined are the text of the answer.

    A token can end inside a character: the character belongs to the token that completes it. At
    the end of an answer, what lies behind its text (a stop string) is cut off.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._length = 0

    def push(self, raw: bytes, *, last: bool = False) -> str:
        text = self._decoder.decode(raw, final=last)
        self._length += len(text)
        return text

    def over(self, length: int) -> int:
        """Characters given beyond `length`, those of the answer."""
        return max(0, self._length - length)


def shown_bytes(raw: bytes) -> str:
    r"""A token by itself: its text, or OpenAI's "bytes:\xe2\x82" for a part of a character."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
