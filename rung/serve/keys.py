"""API keys: where they come from, and how a request shows one."""

import base64
import binascii
import hmac
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rung.errors import ConfigError

VARIABLE = "RUNG_API_KEY"
MIN_CHARS = 8


def load_keys(file: Path | None, *, environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Keys of a file (one a line, # begins a comment) and of RUNG_API_KEY; () where neither is.

    ConfigError for a file that is missing or has no key, and for a key that is easily guessed.
    """
    keys: list[str] = []
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--api-key-file {file} cannot be read: {error}") from None
        keys += [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not keys:
            raise ConfigError(f"--api-key-file {file} has no key: write one a line")
    if environ.get(VARIABLE):
        keys.append(environ[VARIABLE].strip())
    short = next((key for key in keys if len(key) < MIN_CHARS), None)
    if short is not None:
        raise ConfigError(
            f"an API key has {len(short)} characters; at least {MIN_CHARS} are due, better 32: "
            "python -c 'import secrets; print(secrets.token_urlsafe(24))' makes one"
        )
    if not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise ConfigError("an API key has characters that no HTTP header can hold: use ASCII")
    return tuple(dict.fromkeys(keys))


def shown_keys(headers: Mapping[bytes, bytes]) -> list[bytes]:
    """What a request shows as its key: Bearer, x-api-key, or the password a browser asked for."""
    shown = []
    scheme, _, value = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        shown.append(value.strip())
    elif scheme.lower() == b"basic":
        try:
            decoded = base64.b64decode(value.strip(), validate=True)
        except binascii.Error:
            decoded = b""
        shown.append(decoded.partition(b":")[2])
    if b"x-api-key" in headers:
        shown.append(headers[b"x-api-key"].strip())
    return shown


def is_allowed(headers: Mapping[bytes, bytes], keys: Sequence[str]) -> bool:
    """Whether a request shows one of `keys`, in a time that does not tell how much was right."""
    matches = [
        hmac.compare_digest(shown, key.encode()) for shown in shown_keys(headers) for key in keys
    ]
    return any(matches)
