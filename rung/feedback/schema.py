"""A ranking: one judgement of one annotator on the answers to one prompt. No torch here.

A single answer can be judged, too, by a label (a thumb up or down): it orders nothing, so what
learns from order passes over it, and what learns from labels (KTO) does not miss the other answer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rung.errors import DataError
from rung.text.messages import Message, check_turns, normalise

FLAGS = ("misleading", "unhelpful", "harmful", "biased", "private", "off_topic")
KINDS = ("human", "simulated", "judge")


@dataclass(frozen=True)
class Ranking:
    """One row of rankings.jsonl.

    ranks: one per answer, lower is better, equal is a tie. ratings: higher is better, or None.
    labels: True = desirable, False = undesirable, None = not said; None where nobody labelled.
    margin: by how much the better of two answers leads, in units of the rater. weight: how much
    this judgement counts beside others.
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
    labels: Sequence[bool | None] | None = None
    margin: float | None = None
    weight: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """As in the file. What most rows lack is left out, so their bytes stay what they were."""
        row: dict[str, Any] = {
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
        if self.labels is not None:
            row["labels"] = list(self.labels)
        if self.margin is not None:
            row["margin"] = self.margin
        if self.weight != 1.0:
            row["weight"] = self.weight
        return row


def parse_ranking(row: Mapping[str, Any], *, where: str) -> Ranking:
    """A checked Ranking; DataError says which rule a row breaks.

    Rules: the prompt ends with a user message; at least two answers, or one with a label, a rating
    or a flag; ranks, stopped, flags, ratings and labels have one value per answer; flags and kind
    are known words; a margin is of two answers; a weight is positive.
    """
    missing = [key for key in ("id", "prompt", "answers", "ranks") if key not in row]
    if missing:
        raise DataError(f"{where}: a ranking lacks {', '.join(missing)}; it has {sorted(row)}")
    answers = row["answers"]
    if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
        raise DataError(f"{where}: answers are a list of texts, found {answers!r:.60}")
    if not answers or (len(answers) == 1 and not _is_judged(row)):
        raise DataError(
            f"{where}: {len(answers)} answer cannot be ranked; at least 2 are needed, or a label, "
            'for example "labels": [true]'
        )
    prompt = normalise(row["prompt"], where=where)
    check_prompt(prompt, where=where)
    num = len(answers)
    stopped = row.get("stopped") or [True] * num
    flags = row.get("flags") or [[] for _ in range(num)]
    ratings, labels = row.get("ratings"), row.get("labels")
    for name, values in (("ranks", row["ranks"]), ("stopped", stopped), ("flags", flags)):
        _check_length(name, values, num=num, where=where)
    if ratings is not None:
        _check_length("ratings", ratings, num=num, where=where)
    if labels is not None:
        _check_length("labels", labels, num=num, where=where)
        check_labels(labels, where=where)
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
        labels=labels,
        margin=check_margin(row.get("margin"), num=num, where=where),
        weight=check_weight(row.get("weight"), where=where),
    )


def check_prompt(prompt: list[Message], *, where: str) -> None:
    """A prompt is a conversation whose last message is the user's; else DataError."""
    check_turns(prompt, where=where)
    if prompt[-1]["role"] != "user":
        raise DataError(f"{where}: the prompt ends with an assistant message; it must be a user's")


def check_labels(labels: Sequence[Any], *, where: str) -> None:
    """Each True, False or None; else DataError."""
    for label in labels:
        if label is not None and not isinstance(label, bool):
            raise DataError(f"{where}: a label is true, false or null, found {label!r:.60}")


def check_margin(value: Any, *, num: int, where: str) -> float | None:
    """A lead of the better of two answers, or None; else DataError."""
    if value is None:
        return None
    if not _is_number(value) or value < 0:
        raise DataError(f"{where}: margin {value!r:.60} must be a number >= 0")
    if num != 2:
        raise DataError(f"{where}: a margin is of two answers, found {num}; use ratings instead")
    return float(value)


def check_weight(value: Any, *, where: str) -> float:
    """How much a judgement counts, 1 where nothing is said; else DataError."""
    if value is None:
        return 1.0
    if not _is_number(value) or value <= 0:
        raise DataError(f"{where}: weight {value!r:.60} must be a number > 0; leave out the row")
    return float(value)


def _is_number(value: Any) -> bool:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and math.isfinite(value)


def _is_judged(row: Mapping[str, Any]) -> bool:
    """Whether something is said of a single answer; the values are checked later."""
    return any(of_answer not in (None, []) for key in _SAY for of_answer in row.get(key) or ())


_SAY = ("labels", "ratings", "flags")


def _check_length(name: str, values: Any, *, num: int, where: str) -> None:
    if not isinstance(values, list) or len(values) != num:
        found = len(values) if isinstance(values, list) else type(values).__name__
        raise DataError(f"{where}: {num} answers need {num} {name}, found {found}")


def rankings_path(folder: Path) -> Path:
    return folder / "rankings.jsonl"
