"""Named reasons to drop a document, each a plain measurement with a limit."""

import re
from collections import Counter

import pydantic

from rung.config import Config

_NOT_LETTERS = re.compile(r"[\W\d_]+")
_SPACE = re.compile(r"\s+")
_ASCII_NOT_LETTERS = bytes(c for c in range(128) if not chr(c).isalpha())


class Rules(Config):
    """Limits below or above which a document is dropped; the reason is named after the limit."""

    min_chars: int = pydantic.Field(40, ge=0, description="too_short: characters")
    min_letter_share: float = pydantic.Field(
        0.3, ge=0, le=1, description="mostly_symbols: letters / characters that are not space"
    )
    max_repeated_line_share: float = pydantic.Field(
        0.6, ge=0, le=1, description="repeated_lines: lines that occurred before / lines"
    )
    min_lines: int = pydantic.Field(
        10, ge=1, description="repeated_lines is measured from this many non-empty lines on"
    )


def reason_to_drop(text: str, rules: Rules) -> str | None:
    """The first reason that applies to normalised text, or None."""
    if not text:
        return "empty"
    if len(text) < rules.min_chars:
        return "too_short"
    if _num_letters(text) < rules.min_letter_share * _num_visible(text):
        return "mostly_symbols"
    lines = Counter(line.strip() for line in text.split("\n") if line.strip())
    if lines.total() >= rules.min_lines:
        repeated = lines.total() - len(lines)
        if repeated > rules.max_repeated_line_share * lines.total():
            return "repeated_lines"
    return None


def _num_letters(text: str) -> int:
    if text.isascii():  # the same count, many times faster
        return len(text.encode().translate(None, _ASCII_NOT_LETTERS))
    return len(_NOT_LETTERS.sub("", text))


def _num_visible(text: str) -> int:
    if text.isascii():
        return len(text.encode().translate(None, b" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f"))
    return len(_SPACE.sub("", text))
