"""A ranking: one judgement of one annotator on the answers to one prompt. No torch here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rung.errors import DataError
from rung.text.messages import Message, check_turns, normalise

FLAGS = ("misleading", "unhelpful", "harmful")
KINDS = ("human", "simulated", "judge")


@dataclass(frozen=True)
class Ranking:
    """One row of rankings.jsonl.

    ranks: one per answer, lower is better, equal is a tie. ratings: higher is better, or None.
    stopped: whether the model ended each answer itself (True for answers people wrote).
    Example:
    {"id": "ppo-17", "prompt": [{"role": "user", "content": "What does `json.dumps` do?"}],
     "answers": ["`json.dumps`: Serialize obj.", "`json.dumps`: Parse."], "stopped": [true, true],
     "ranks": [1, 2], "flags": [[], ["misleading"]], "ratings": null, "annotator": "simulated-1",
     "kind": "simulated", "source": {"format": "explain", "utilities": [0.8, 0.4], ...}}
    `source.utilities` (simulated only) is the noise-free truth: for measuring, never for training.
    """

    id: str
    prompt: Sequence[Message]
    answers: Sequence[str]
    stopped: Sequence[bool]
    ranks: Sequence[int]
    flags: Sequence[Sequence[str]]
    ratings: Sequence[float] | None = None
    annotator: str = "unknown"
    kind: str = "human"
    source: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "prompt": [dict(message) for message in self.prompt],
            "answers": list(self.answers),
            "stopped": list(self.stopped),
            "ranks": list(self.ranks),
            "flags": [list(flags) for flags in self.flags],
            "ratings": None if self.ratings is None else list(self.ratings),
            "annotator": self.annotator,
            "kind": self.kind,
            "source": dict(self.source),
        }


def parse_ranking(row: Mapping[str, Any], *, where: str) -> Ranking:
    """A checked Ranking; DataError says which rule a row breaks.

    Rules: the prompt ends with a user message; at least two answers; ranks, stopped, flags and
    ratings have one value per answer; flags and kind are known words.
    """
    missing = [key for key in ("id", "prompt", "answers", "ranks") if key not in row]
    if missing:
        raise DataError(f"{where}: a ranking lacks {', '.join(missing)}; it has {sorted(row)}")
    answers = row["answers"]
    if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
        raise DataError(f"{where}: answers are a list of texts, found {answers!r:.60}")
    if len(answers) < 2:
        raise DataError(f"{where}: {len(answers)} answer cannot be ranked; at least 2 are needed")
    prompt = normalise(row["prompt"], where=where)
    check_prompt(prompt, where=where)
    num = len(answers)
    stopped = row.get("stopped") or [True] * num
    flags = row.get("flags") or [[] for _ in range(num)]
    ratings = row.get("ratings")
    for name, values in (("ranks", row["ranks"]), ("stopped", stopped), ("flags", flags)):
        _check_length(name, values, num=num, where=where)
    if ratings is not None:
        _check_length("ratings", ratings, num=num, where=where)
    if not all(isinstance(rank, int) and not isinstance(rank, bool) for rank in row["ranks"]):
        raise DataError(f"{where}: ranks are whole numbers, 1 is best; found {row['ranks']}")
    unknown = sorted({str(flag) for of_answer in flags for flag in of_answer} - set(FLAGS))
    if unknown:
        raise DataError(f"{where}: unknown flag {unknown[0]!r}; known: {', '.join(FLAGS)}")
    kind = row.get("kind", "human")
    if kind not in KINDS:
        raise DataError(f"{where}: kind {kind!r} is not one of {', '.join(KINDS)}")
    return Ranking(
        id=str(row["id"]),
        prompt=prompt,
        answers=answers,
        stopped=stopped,
        ranks=row["ranks"],
        flags=flags,
        ratings=ratings,
        annotator=str(row.get("annotator", "unknown")),
        kind=kind,
        source=row.get("source") or {},
    )


def check_prompt(prompt: list[Message], *, where: str) -> None:
    """A prompt is a conversation whose last message is the user's; else DataError."""
    check_turns(prompt, where=where)
    if prompt[-1]["role"] != "user":
        raise DataError(f"{where}: the prompt ends with an assistant message; it must be a user's")


def _check_length(name: str, values: Any, *, num: int, where: str) -> None:
    if not isinstance(values, list) or len(values) != num:
        found = len(values) if isinstance(values, list) else type(values).__name__
        raise DataError(f"{where}: {num} answers need {num} {name}, found {found}")


def rankings_path(folder: Path) -> Path:
    return folder / "rankings.jsonl"
