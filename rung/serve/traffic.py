"""The traffic log: what was asked and answered, redacted, with edge cases marked.

Off unless `--log-traffic` is given. One JSON object a line, a file a day. A thread of its own
writes, so a slow disk holds up no stream; what a power cut can take is the last half second.
"""

import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rung.errors import ConfigError
from rung.serve.marks import find_marks
from rung.store.store import Store
from rung.text.pii import redact

_BATCH_SECONDS = 0.5
Messages = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Exchange:
    """One request and what came of it. prompt: messages of a chat, or a text.

    finishes: finish_reason of each answer, None where the client went away before the end.
    """

    id: str
    endpoint: str
    model: str
    artefact: str
    prompt: Messages | str
    answers: Sequence[str]
    finishes: Sequence[str | None]
    seconds: float
    first_token_seconds: float | None
    usage: dict[str, int]
    sampling: dict[str, Any] = field(default_factory=dict)


class TrafficLog:
    """folder: where the files lie. score: rewards of a conversation's answers, where a reward model
    is at hand."""

    def __init__(
        self,
        folder: Path,
        *,
        slow_seconds: float,
        low_reward: float,
        score: Callable[[Messages, Sequence[str]], list[float]] | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self._folder = folder
        self._slow, self._low, self._score, self._say = slow_seconds, low_reward, score, say
        self._waiting: queue.SimpleQueue[Exchange | dict[str, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="rung-traffic", daemon=True)
        folder.mkdir(parents=True, exist_ok=True)
        os.chmod(folder, 0o700)  # what people asked is theirs
        _mend(folder / _name_today())
        self._thread.start()

    def record(self, exchange: Exchange) -> None:
        """Returns at once."""
        self._waiting.put(exchange)

    def flag(self, id: str, reason: str, *, comment: str = "") -> None:
        """A user says that the answer `id` is wrong in some way."""
        row = {"flag": id, "time": _now(), "reason": redact(reason)[0]}
        self._waiting.put({**row, "comment": redact(comment)[0]})

    def close(self) -> None:
        """Write what waits, and end."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while True:
            rows: list[dict[str, Any]] = []
            item = self._waiting.get()
            end = time.monotonic() + _BATCH_SECONDS
            while item is not None:
                rows.append(item if isinstance(item, dict) else self._row(item))
                try:
                    item = self._waiting.get(timeout=max(0.0, end - time.monotonic()))
                except queue.Empty:
                    break
            if rows:
                self._write(rows)
            if item is None:
                return

    def _row(self, exchange: Exchange) -> dict[str, Any]:
        rewards = None
        if self._score is not None and not isinstance(exchange.prompt, str):
            try:
                rewards = self._score(exchange.prompt, exchange.answers)
            except Exception as error:  # a log must not end for one text that cannot be scored
                self._say(f"traffic: {exchange.id} was not scored ({type(error).__name__})")
        marks = find_marks(exchange, rewards, slow_seconds=self._slow, low_reward=self._low)
        return to_row(exchange, rewards=rewards, marks=marks)

    def _write(self, rows: Sequence[dict[str, Any]]) -> None:
        path = self._folder / _name_today()
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with open(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._say(f"traffic: {len(rows)} rows are lost, {path} cannot be written: {error}")


def open_traffic(
    store: Store, *, slow_seconds: float, low_reward: float, reward: str | None = None
) -> TrafficLog:
    """The log in the folder `traffic` of a store; reward: name of a reward model in it."""
    score = None
    if reward is not None:
        artefact = store.checked(store.open(reward))
        if artefact.kind != "reward-model":
            raise ConfigError(f"--reward {reward} is a {artefact.kind}, not a reward-model")
        from rung.serve.scoring import RewardScorer

        score = RewardScorer(artefact.path)
    return TrafficLog(
        store.root / "traffic", slow_seconds=slow_seconds, low_reward=low_reward, score=score
    )


def to_row(
    exchange: Exchange, *, rewards: list[float] | None, marks: Sequence[str]
) -> dict[str, Any]:
    """A line of the log. Every text of a person or a model goes through `redact`."""
    counts: dict[str, int] = {}

    def clean(text: str) -> str:
        cleaned, found = redact(text)
        for kind, number in found.items():
            counts[kind] = counts.get(kind, 0) + number
        return cleaned

    if isinstance(exchange.prompt, str):
        prompt: dict[str, Any] = {"prompt": clean(exchange.prompt)}
    else:
        told = [{"role": m["role"], "content": clean(m["content"])} for m in exchange.prompt]
        prompt = {"messages": told}
    return {
        "id": exchange.id,
        "time": _now(),
        "endpoint": exchange.endpoint,
        "model": exchange.model,
        "artefact": exchange.artefact,
        **prompt,
        "answers": [clean(answer) for answer in exchange.answers],
        "finish": list(exchange.finishes),
        "usage": exchange.usage,
        "sampling": exchange.sampling,
        "seconds": round(exchange.seconds, 4),
        "first_token_seconds": exchange.first_token_seconds,
        "rewards": rewards,
        "marks": list(marks),
        "redacted": counts,
    }


def read_traffic(folder: Path) -> Iterator[dict[str, Any]]:
    """Rows in the order they were written, flags joined to what they are about: key "flags", and
    "flag" among the marks. A line torn by a kill is left out."""
    rows: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        text = path.read_text(encoding="utf-8")
        for line in text[: text.rfind("\n") + 1].split("\n")[:-1]:
            row = json.loads(line)
            if "flag" not in row:
                rows[row["id"]] = {**row, "flags": []}
            elif (about := rows.get(row["flag"])) is not None:
                about["flags"].append({"reason": row["reason"], "comment": row["comment"]})
                about["marks"] = [*dict.fromkeys([*about["marks"], "flag"])]
    yield from rows.values()


def edge_cases(folder: Path) -> list[dict[str, Any]]:
    """The rows that something marks: where the next training data should come from."""
    return [row for row in read_traffic(folder) if row["marks"]]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _name_today() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d}.jsonl"


def _mend(path: Path) -> None:
    """Cut off a last line that a kill tore."""
    if path.is_file():
        whole = path.read_bytes()
        end = whole.rfind(b"\n") + 1
        if end != len(whole):
            os.truncate(path, end)
