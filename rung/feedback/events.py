"""What people say in the chat page: one event per vote, thumb, flag, comment or edited answer.

Events are only added; a later one of the same person, kind and subject replaces the earlier one
where they are read. No torch here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rung.errors import DataError
from rung.feedback.schema import FLAGS, Ranking, check_prompt
from rung.text.messages import Message, is_broken, normalise

VERDICTS = ("left", "right", "tie", "both_bad", "none")
THUMBS = ("up", "down", "none")
KINDS = ("vote", "thumb", "flag", "comment", "edit")


@dataclass(frozen=True)
class Shown:
    """An answer as it was shown. model: its served name; artefact: the id behind the name then.

    stopped: whether the model ended it itself. completion: the id that the API gave it, by which
    the traffic log knows it.
    """

    text: str
    model: str = ""
    artefact: str = ""
    stopped: bool = True
    completion: str = ""


@dataclass(frozen=True)
class Event:
    """One line of inbox.jsonl.

    answers: in the order shown, left first; a vote has two, anything else one.
    value: of a vote one of VERDICTS, of a thumb one of THUMBS ("none" takes it back), of a flag the
    list of reasons (FLAGS; empty takes it back), of a comment its text, of an edit the new answer.
    subject: what it is about, the id of an answer or of a comparison.
    blind: whether the names of the models were hidden when it was said.
    key: made by the page; the same key twice is the same event sent twice.
    Example:
    {"id": "chat/5f0c...", "key": "b6c9...", "time": "2026-10-05T09:30:00.120+00:00",
     "kind": "thumb", "subject": "a-17", "prompt": [{"role": "user", "content": "Hi"}],
     "answers": [{"text": "Hello!", "model": "chat", "artefact": "9b1f...", "stopped": true,
     "completion": "chatcmpl-2f..."}], "value": "up", "comment": "", "blind": false,
     "sampling": {"temperature": 0.7}, "annotator": "browser-3fa9"}
    """

    id: str
    key: str
    time: str
    kind: str
    subject: str
    prompt: Sequence[Message]
    answers: Sequence[Shown]
    value: str | Sequence[str]
    comment: str = ""
    blind: bool = False
    sampling: Mapping[str, Any] = field(default_factory=dict)
    annotator: str = "chat"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def parse_event(row: Mapping[str, Any], *, where: str) -> Event:
    """A checked Event; DataError says which rule a row breaks."""
    missing = [key for key in _NEEDED if key not in row]
    if missing:
        raise DataError(f"{where}: an event lacks {', '.join(missing)}; it has {sorted(row)}")
    unknown = sorted(set(row) - set(Event.__dataclass_fields__))
    if unknown:
        raise DataError(f"{where}: unknown key {unknown[0]!r} in an event")
    kind = row["kind"]
    if kind not in KINDS:
        raise DataError(f"{where}: kind {kind!r:.40} is not one of {', '.join(KINDS)}")
    prompt = normalise(row["prompt"], where=where)
    check_prompt(prompt, where=where)
    answers = [_shown(answer, where=where) for answer in _list(row, "answers", where=where)]
    wanted = 2 if kind == "vote" else 1
    if len(answers) != wanted:
        raise DataError(f"{where}: a {kind} is about {wanted} answers, found {len(answers)}")
    value = _value(kind, row["value"], where=where)
    if kind == "edit" and value == answers[0].text:
        raise DataError(f"{where}: the edited answer equals the answer; nothing to store")
    sampling = row.get("sampling") or {}
    if not isinstance(sampling, dict):
        raise DataError(f"{where}: sampling is an object, found {type(sampling).__name__}")
    event = Event(
        kind=kind,
        prompt=prompt,
        answers=answers,
        value=value,
        blind=row.get("blind") is True,
        sampling=sampling,
        **{key: _text(row, key, limit, where=where) for key, limit in _TEXTS.items()},
    )
    texts = [m["content"] for m in prompt] + [a.text for a in answers] + [str(value), event.comment]
    if any(map(is_broken, texts)):
        raise DataError(f"{where}: half a character (a lone surrogate), which no file can hold")
    return event


_NEEDED = ("key", "kind", "subject", "prompt", "answers", "value")
_TEXTS = {"id": 80, "key": 80, "time": 40, "subject": 80, "comment": 10_000, "annotator": 80}


def _text(row: Mapping[str, Any], key: str, limit: int, *, where: str) -> str:
    value = row.get(key, Event.__dataclass_fields__[key].default if key in _OPTIONAL else "")
    if not isinstance(value, str) or len(value) > limit:
        raise DataError(f"{where}: {key} is a text of at most {limit:,} characters")
    if key in ("key", "subject") and not value:
        raise DataError(f"{where}: {key} is empty")
    return value


_OPTIONAL = ("comment", "annotator")


def _list(row: Mapping[str, Any], key: str, *, where: str) -> list[Any]:
    if not isinstance(row[key], list):
        raise DataError(f"{where}: {key} is a list, found {type(row[key]).__name__}")
    return row[key]


def _shown(row: Any, *, where: str) -> Shown:
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise DataError(
            f'{where}: an answer is an object with its text, as in {{"text": "Hello!"}}'
        )
    names = {key: row.get(key, "") for key in ("model", "artefact", "completion")}
    if not all(isinstance(name, str) and len(name) <= 200 for name in names.values()):
        raise DataError(f"{where}: model, artefact and completion of an answer are short texts")
    return Shown(text=row["text"], stopped=row.get("stopped") is not False, **names)


def _value(kind: str, value: Any, *, where: str) -> str | list[str]:
    if kind == "flag":
        reasons = value if isinstance(value, list) else [value]
        wrong = [reason for reason in reasons if reason not in FLAGS]
        if wrong:
            raise DataError(f"{where}: unknown flag {wrong[0]!r:.40}; known: {', '.join(FLAGS)}")
        return sorted(set(reasons))
    known = {"vote": VERDICTS, "thumb": THUMBS}.get(kind)
    if known is not None and value not in known:
        raise DataError(f"{where}: a {kind} is one of {', '.join(known)}, found {value!r:.40}")
    if not isinstance(value, str) or (kind == "edit" and not value.strip()):
        raise DataError(f"{where}: the value of a {kind} is text, found {value!r:.40}")
    return value


def latest(events: Iterable[Event]) -> list[Event]:
    """The last word of each person on each subject, by kind; in the order of the first words."""
    last: dict[tuple[str, str, str], Event] = {}
    for event in events:
        last[event.annotator, event.kind, event.subject] = event
    return list(last.values())


def as_rankings(events: Iterable[Event]) -> list[Ranking]:
    """What the events say of answers, as training reads it.

    A vote ranks two answers; "both bad" is a tie of two undesirable ones. An edit ranks the new
    answer above the old one. Thumb and flags of one person on one answer are one judgement of a
    single answer; a comment goes along with what it comments on and says nothing by itself.
    """
    said = latest(events)
    comments = {(e.annotator, e.subject): str(e.value) for e in said if e.kind == "comment"}
    single: dict[tuple[str, str], dict[str, Event]] = {}
    found: list[Ranking] = []
    for event in said:
        if event.kind in ("thumb", "flag") and event.value not in ("none", []):
            single.setdefault((event.annotator, event.subject), {})[event.kind] = event
        elif event.kind == "vote" and event.value != "none":
            found.append(_from_vote(event, comments))
        elif event.kind == "edit":
            found.append(_from_edit(event, comments))
    return found + [_from_single(by_kind, comments) for by_kind in single.values()]


_RANKS = {"left": [1, 2], "right": [2, 1], "tie": [1, 1], "both_bad": [1, 1]}
_Comments = Mapping[tuple[str, str], str]


def _from_vote(event: Event, comments: _Comments) -> Ranking:
    return _ranking(
        event,
        comments,
        ranks=_RANKS[str(event.value)],
        flags=[[], []],
        labels=[False, False] if event.value == "both_bad" else None,
    )


def _from_edit(event: Event, comments: _Comments) -> Ranking:
    return _ranking(event, comments, ranks=[1, 2], flags=[[], []], edited=str(event.value))


def _from_single(by_kind: Mapping[str, Event], comments: _Comments) -> Ranking:
    thumb, flag = by_kind.get("thumb"), by_kind.get("flag")
    event = thumb or flag
    assert event is not None
    return _ranking(
        event,
        comments,
        ranks=[1],
        flags=[list(flag.value) if flag else []],
        labels=[thumb.value == "up"] if thumb else None,
        comment=flag.comment if flag else "",
    )


def _ranking(
    event: Event,
    comments: _Comments,
    *,
    ranks: list[int],
    flags: list[list[str]],
    labels: list[bool] | None = None,
    edited: str | None = None,
    comment: str = "",
) -> Ranking:
    written = [] if edited is None else [edited]
    said = [event.comment, comment, comments.get((event.annotator, event.subject), "")]
    source: dict[str, Any] = {
        "shape": "chat event",
        "event": event.id,
        "said": event.kind,
        "models": [""] * len(written) + [answer.model for answer in event.answers],
        "artefacts": [""] * len(written) + [answer.artefact for answer in event.answers],
        "blind": event.blind,
        "sampling": dict(event.sampling),
    }
    text = "\n".join(dict.fromkeys(part for part in said if part))
    return Ranking(
        id=event.id,
        prompt=event.prompt,
        answers=written + [answer.text for answer in event.answers],
        stopped=[True] * len(written) + [answer.stopped for answer in event.answers],
        ranks=ranks,
        flags=flags,
        annotator=event.annotator,
        kind="human",
        source=source | ({"comment": text} if text else {}),
        labels=labels,
    )
