"""Clean text: one kind of newline, composed Unicode, no control characters, no broken encodings."""

import re
import unicodedata
from functools import cache
from typing import Any

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2060\ufeff\ufffe\uffff\ud800-\udfff]")
_TRAILING = re.compile(r"[ \t\u00a0]+$", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{4,}")
# UTF-8 read as a one-byte encoding: a letter of the lead byte, then one of the continuation bytes.
_MOJIBAKE = re.compile(
    "[\u00c2\u00c3\u00e2][\u0080-\u00bf\u20ac\u201a-\u201e\u2018-\u2122\u0152\u0153]"
)


def normalise(text: str) -> str:
    """`text` with \\n newlines, NFC, no control or zero-width characters, no trailing spaces.

    Text that looks like UTF-8 read in the wrong encoding is repaired where ftfy is installed
    (the extra `html`); the test for it is cheap, the repair is not.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n")
    if not text.isascii():
        if _MOJIBAKE.search(text) and _ftfy() is not None:
            text = _ftfy().fix_encoding(text)
        text = unicodedata.normalize("NFC", text)
    text = _CONTROL.sub("", text)
    return _BLANK_LINES.sub("\n\n\n", _TRAILING.sub("", text)).strip("\n").rstrip()


@cache
def _ftfy() -> Any:
    try:
        import ftfy  # an extra
    except ImportError:
        return None
    return ftfy
