"""What all clients are asked, and how a check script tells of it; of the standard library only.

A check script has a function a behaviour that its client can do, marked `@behaviour` and called
like it. It is given a file for its results: a JSON line with the client's version, then one a
behaviour: {"behaviour": "chat", "error": null}.
"""

import json
import os
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

BEHAVIOURS = {
    "models": "list models",
    "chat": "chat",
    "stream": "stream",
    "usage": "usage in the stream",
    "system": "system prompt",
    "stop": "stop strings",
    "seed": "a seed gives its text twice",
    "logprobs": "log-probabilities",
    "n": "n answers",
    "tools": "a tool call and its result",
    "schema": "JSON schema",
    "embeddings": "embeddings",
    "completions": "completions",
    "echo": "echo with log-probabilities",
    "unknown_model": "error: unknown model",
    "wrong_key": "error: wrong key",
    "abort": "abort frees the server",
}
URL = os.environ.get("CHECK_URL", "")  # ends in /v1
KEY = os.environ.get("CHECK_KEY", "")
MODEL = os.environ.get("CHECK_MODEL", "")
WRONG_KEY = "a-key-that-nobody-has"
NO_MODEL = "no-such-model"
QUESTION = "What is the capital?"
SYSTEM = "Answer in one word."
TOKENS = 24  # of an answer
ROOM = 200  # tokens that a call or an object of SCHEMA ends within
LONG = 8000  # tokens of the answer that is aborted; the model never ends by itself
CITIES = ["Oslo", "Rome"]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": CITIES}, "warm": {"type": "boolean"}},
    "required": ["city", "warm"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather.", "parameters": SCHEMA},
}
FREED_WITHIN = 60  # seconds; a busy machine is no fault

Check = Callable[[], None]
_checks: dict[str, Check] = {}


def behaviour(check: Check) -> Check:
    if check.__name__ not in BEHAVIOURS:
        raise ValueError(f"{check.__name__!r} is none of {', '.join(BEHAVIOURS)}")
    _checks[check.__name__] = check
    return check


def run(version: str) -> None:
    """Every check once. The order is that of BEHAVIOURS, so that logs of two clients compare."""
    tell({"version": version, "behaviours": list(_checks)})
    for name in BEHAVIOURS:
        if name in _checks:
            tell({"behaviour": name, "error": error_of(_checks[name])})


def tell(line: dict[str, object]) -> None:
    with Path(sys.argv[1]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def error_of(check: Check) -> str | None:
    """What the client, or the check, says was wrong, and the check's line."""
    try:
        check()
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if Path(frame.filename).name.startswith("check_")]
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}: {ours[-1].line}" if ours else ""
        return f"{where} -> {type(error).__name__}: {error}"
    return None


def stop_in(text: str) -> tuple[str, str]:
    """(two letters of `text` to stop at, what comes before them)."""
    for at in range(2, len(text) - 1):
        stop = text[at : at + 2]
        if stop.isalpha() and stop.isascii():
            return stop, text[: text.index(stop)]
    raise ValueError(f"no two letters in {text!r}")


def is_place(text: str) -> bool:
    """Whether `text` is an object of SCHEMA."""
    found = json.loads(text)
    return set(found) == {"city", "warm"} and found["city"] in CITIES


@contextmanager
def refused(kind: type[Exception], word: str) -> Iterator[None]:
    """Within, the client raises an error of `kind` that tells of `word`."""
    try:
        yield
    except kind as error:
        said = f"{error!r} {error} {getattr(error, 'body', '')}"
        if word not in said:
            raise AssertionError(f"nothing of {word!r} in {said}") from error
    else:
        raise AssertionError("it was answered")


@contextmanager
def frees_the_server() -> Iterator[None]:
    """Within, a client goes away from an answer of LONG tokens: soon none is being written, and
    the answer was not written to its end."""
    before = read_metrics()["rung_new_tokens_total"]
    yield
    deadline = time.monotonic() + FREED_WITHIN
    while is_busy(now := read_metrics()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_busy(now), "the answer is still being written"
    written = now["rung_new_tokens_total"] - before
    assert written < LONG, f"all {LONG} tokens were written"


def is_busy(figures: dict[str, float]) -> bool:
    return any(figures[f"rung_{name}"] for name in ("running", "waiting", "slots_used"))


def read_metrics() -> dict[str, float]:
    """The server's figures that have no labels."""
    lines = fetch(URL.removesuffix("/v1") + "/metrics").splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#") and "{" not in line]
    return {name: float(value) for name, value in pairs}


def fetch(url: str, body: dict[str, object] | None = None) -> str:
    """Plain HTTP, for what the server says without the client."""
    request = urllib.request.Request(
        url,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return str(response.read().decode())
