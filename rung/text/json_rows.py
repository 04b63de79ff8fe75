"""Values of JSON text with their line numbers; a key that is there twice is an error."""

import io
import json
import re
from collections.abc import Iterator
from typing import Any

from rung.errors import DataError

_SPACE = re.compile(r"[ \t\n\r]*")


class DoubledKey(ValueError):
    """JSON readers keep the last of two equal keys and say nothing; here it is refused."""


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DoubledKey(f"key {twice!r} is there twice in one object; keep one")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_no_doubles)


def load_json(text: str) -> Any:
    """One JSON value; ValueError for a doubled key as for anything else that is not JSON."""
    return _DECODER.decode(text)


def json_lines(text: str, *, path: str, example: str) -> Iterator[tuple[int, Any]]:
    """(line number, value) of every line that is not blank."""
    # Not splitlines(): U+2028 and its kin may stand unescaped inside a JSON string.
    for number, line in enumerate(io.StringIO(text), start=1):
        if not line.strip():
            continue
        try:
            yield number, load_json(line)
        except DoubledKey as error:
            raise DataError(f"{path}:{number}: {error}; for example {example}") from None
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}:{number}: not JSON ({error}); one object a line, for example {example}"
            ) from None


def json_list(text: str, *, path: str, example: str) -> Iterator[tuple[int, Any]]:
    """(line number, value) of a list, or of the list under `data` of an object.

    A .json file that has one object a line is read as such: many hold just that.
    """
    scanner = _Scanner(text, path=path)
    start = scanner.peek()
    if start == "[":
        yield from scanner.items()
    elif start == "{" and _is_lines(text):
        yield from json_lines(text, path=path, example=example)
    elif start == "{":
        yield from scanner.items_under("data", otherwise=_no_list(path, "an object", example))
    elif start:
        value = type(scanner.value()).__name__
        raise DataError(_no_list(path, value, example))


def _no_list(path: str, found: str, example: str) -> str:
    return (
        f"{path}: a .json file holds a list of rows, or an object with that list under `data`; "
        f"found {found}; for example [{example}, ...]"
    )


def _is_lines(text: str) -> bool:
    """Whether the first line is a whole object and another one follows it."""
    first, _, rest = text.lstrip().partition("\n")
    if not rest.lstrip().startswith("{"):
        return False
    try:
        return isinstance(load_json(first), dict)
    except DoubledKey:
        return True  # json_lines names its line
    except (ValueError, RecursionError):
        return False


class _Scanner:
    """Values one after the other, each with the line it begins on."""

    def __init__(self, text: str, *, path: str) -> None:
        self.text, self.path = text, path
        self.at = 0
        self._counted, self._line = 0, 1

    def peek(self) -> str:
        """The next character that is no white space, "" at the end."""
        self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
        return self.text[self.at : self.at + 1]

    def line(self) -> int:
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line

    def value(self) -> Any:
        self.peek()
        line = self.line()
        try:
            value, self.at = _DECODER.raw_decode(self.text, self.at)
        except DoubledKey as error:
            raise DataError(f"{self.path}:{line}: {error}") from None
        except json.JSONDecodeError as error:
            raise DataError(f"{self.path}:{error.lineno}: not JSON ({error.msg})") from None
        except RecursionError:
            raise DataError(f"{self.path}:{line}: not JSON (nested too deeply)") from None
        return value

    def expect(self, *wanted: str) -> str:
        found = self.peek()
        if found not in wanted or not found:
            said = repr(found) if found else "the end of the file"
            raise DataError(
                f"{self.path}:{self.line()}: not JSON ({' or '.join(map(repr, wanted))} "
                f"expected, found {said})"
            )
        self.at += 1
        return found

    def items(self) -> Iterator[tuple[int, Any]]:
        self.expect("[")
        if self.peek() == "]":
            self.at += 1
            return
        while True:
            self.peek()
            yield self.line(), self.value()
            if self.expect(",", "]") == "]":
                return

    def members(self) -> Iterator[str]:
        """Keys of an object; the caller reads the value of each."""
        self.expect("{")
        if self.peek() == "}":
            self.at += 1
            return
        while True:
            key = self.value()
            self.expect(":")
            yield key
            if self.expect(",", "}") == "}":
                return

    def items_under(self, wanted: str, *, otherwise: str) -> Iterator[tuple[int, Any]]:
        found = False
        for key in self.members():
            if key == wanted and self.peek() == "[":
                if found:
                    raise DataError(f"{self.path}:{self.line()}: key {key!r} is there twice")
                found = True
                yield from self.items()
            else:
                self.value()
        if not found:
            raise DataError(otherwise)
