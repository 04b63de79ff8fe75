"""Bytes to text: the encoding asked for, or the one that the bytes show."""

import codecs
from typing import NamedTuple

from rung.errors import DataError

MAX_CONTROL_SHARE = 0.02  # of the first bytes; text files have next to none

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it starts with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class Decoded(NamedTuple):
    """text is None where the bytes are no text (an image, an archive)."""

    text: str | None
    encoding: str


def decode(data: bytes, *, encoding: str, where: str) -> Decoded:
    """Text of `data`; "auto" takes the byte order mark, else UTF-8, else Windows-1252 / Latin-1.

    DataError names the file, the byte and the way out when the encoding asked for does not fit.
    """
    if encoding != "auto":
        return Decoded(_strict(data, encoding=encoding, where=where), encoding)
    for mark, name in _MARKS:
        if data.startswith(mark):
            return Decoded(_strict(data, encoding=name, where=where), name)
    if _is_binary(data[:65536]):
        return Decoded(None, "binary")
    for name in ("utf-8", "cp1252"):
        try:
            return Decoded(data.decode(name), name)
        except UnicodeDecodeError:
            pass
    return Decoded(data.decode("latin-1"), "latin-1")


def _strict(data: bytes, *, encoding: str, where: str) -> str:
    try:
        return data.decode(encoding)
    except LookupError:
        raise DataError(
            f'source.encoding: {encoding!r} is no encoding that Python knows; use "auto", "utf-8", '
            '"utf-16", "latin-1" or another name of the codecs module'
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: byte {error.start} (0x{data[error.start]:02x}) is not {encoding}; set "
            'source.encoding to the right one, or to "auto"'
        ) from None


def _is_binary(head: bytes) -> bool:
    control = sum(head.count(code) for code in range(32) if code not in (8, 9, 10, 12, 13, 27))
    return b"\x00" in head or control > MAX_CONTROL_SHARE * len(head)
