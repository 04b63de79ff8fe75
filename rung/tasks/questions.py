"""A question about one documented entry: its wording, its true answer, its passage."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rung.tasks.entries import Entry, defaults
from rung.tasks.phrasings import (
    NO_SUCH_NAME,
    OFF_TOPIC,
    choose_phrasing,
    is_heldout_phrasing,
)
from rung.text.messages import assistant, user

FORMATS = ("explain", "signature", "module", "summarise", "passage", "unknown")
CLOSED_BOOK = ("explain", "signature", "module")
MAX_RETURNS = 24  # words of a "what does it return" answer
MAX_ANSWER = 200  # characters: about 64 tokens of a small vocabulary
MIN_EXTRA = 8  # words a documentation must have beyond its summary to be worth summarising

_RETURNS_SECTION = re.compile(
    r"^Returns?:?[ ]*\n(?:[ ]*-+[ ]*\n)?(.+?)(?:\n[ ]*\n|\Z)", re.M | re.S
)
_RETURNS_SENTENCE = re.compile(r"(?:^|(?<=[.\n] )|(?<=\n))(Returns? [^.]{8,180}\.)(?=\s|$)")


@dataclass(frozen=True)
class Limits:
    """How long a question may be: words of a passage, characters of the whole prompt."""

    passage_words: int
    prompt_chars: int


@dataclass(frozen=True)
class Question:
    """Everything of an instruction row but its id and group. question: key of PHRASINGS."""

    format: str
    question: str
    fields: Mapping[str, str]
    answer: str
    passage: str | None = None


def ask(
    entry: Entry, format: str, draw: random.Random, *, limits: Limits, modules: Sequence[str]
) -> Question | None:
    """A question of `format` about `entry`, or None where the entry does not carry one.

    modules: what a choice of modules draws its wrong options from.
    """
    if format == "explain":
        return _explain(entry)
    if format == "signature":
        return _signature(entry)
    if format == "module":
        return _module(entry, draw, modules=modules)
    if format == "summarise":
        return _summarise(entry, limits=limits)
    assert format == "passage", format
    return _passage(entry, draw, limits=limits)


def _explain(entry: Entry) -> Question | None:
    if not entry.summary:
        return None
    return Question("explain", "explain", {"name": entry.name}, explanation(entry))


def explanation(entry: Entry) -> str:
    return f"`{entry.short}`: {entry.summary}"


def _signature(entry: Entry) -> Question | None:
    if not entry.signature:
        return None
    return Question("signature", "signature", {"name": entry.name}, _call(entry))


def _call(entry: Entry) -> str:
    """The short name with its arguments: the full one would spend the answer on a copy."""
    return f"`{entry.short}{entry.signature}`"


def _module(entry: Entry, draw: random.Random, *, modules: Sequence[str]) -> Question | None:
    if entry.kind == "method":  # asking for the module of a method is asking for its class
        return None
    answer = f"`{entry.short}` is in `{entry.module}`."
    others = [m for m in draw.sample(modules, min(4, len(modules))) if m != entry.module][:3]
    if len(others) < 3 or draw.random() < 0.5:
        return Question("module", "module", {"short": entry.short}, answer)
    options = [*others, entry.module]
    draw.shuffle(options)
    told = ", ".join(f"`{m}`" for m in options[:-1]) + f" or `{options[-1]}`"
    return Question("module", "module_choice", {"short": entry.short, "options": told}, answer)


def _summarise(entry: Entry, *, limits: Limits) -> Question | None:
    if not entry.summary or len(entry.doc.split()) < len(entry.summary.split()) + MIN_EXTRA:
        return None
    passage = cut_words(entry.doc, limits=limits)
    return Question("summarise", "summarise", {"passage": passage}, entry.summary, passage)


def _passage(entry: Entry, draw: random.Random, *, limits: Limits) -> Question | None:
    passage = cut_words(f"{entry.name}{entry.signature}\n\n{entry.doc}", limits=limits)
    fields = {"name": entry.name, "passage": passage}
    found: list[Question] = []
    if entry.signature and _holds(passage, entry.signature):
        found.append(Question("passage", "passage_signature", fields, _call(entry), passage))
        for argument, default in defaults(entry.signature):
            answer = f"The default of `{argument}` is `{default}`."
            asked = {**fields, "argument": argument}
            if "`" not in default:  # it stands between back-ticks in the answer
                found.append(Question("passage", "passage_default", asked, answer, passage))
    returns = returns_of(entry.doc)
    if returns and _holds(passage, returns):
        found.append(Question("passage", "passage_returns", fields, returns, passage))
    if entry.summary and len(entry.doc.split()) >= len(entry.summary.split()) + MIN_EXTRA:
        found.append(Question("passage", "passage_explain", fields, explanation(entry), passage))
    if not found:
        return None
    kind = draw.choice(sorted({q.question for q in found}))  # kinds alike, however many defaults
    return draw.choice([q for q in found if q.question == kind])


def returns_of(doc: str) -> str:
    """What the documentation says comes back: a sentence or the returns section; "" if nothing."""
    section = _RETURNS_SECTION.search(doc)
    sentence = _RETURNS_SENTENCE.search(doc)
    text = section[1] if section else sentence[1] if sentence else ""
    text = " ".join(text.split())
    if not 2 <= len(text.split()) <= MAX_RETURNS or "::" in text or ">>>" in text:
        return ""
    return text


def _holds(passage: str, span: str) -> bool:
    return span in " ".join(passage.split())


def cut_words(text: str, *, limits: Limits) -> str:
    """The first words of `text` within both limits; lines and indentation kept.

    A fifth of the characters is left for the question itself.
    """
    room = int(limits.prompt_chars * 0.8)
    end = 0
    for count, match in enumerate(re.finditer(r"\S+", text), start=1):
        if count > limits.passage_words or match.end() > room:
            break
        end = match.end()
    return text[:end]


def make_row(
    question: Question, *, id: str, name: str, group: str, draw: random.Random, heldout: bool
) -> dict[str, Any]:
    """The instruction row (docs/design.md) of a question about something that exists."""
    index, form = choose_phrasing(question.question, draw, heldout=heldout)
    return _row(
        format=question.format,
        id=id,
        group=group,
        prompt=form.format(**question.fields),
        truth={
            "name": name,
            "exists": True,
            "answer": question.answer,
            "passage": question.passage,
            "question": question.question.removeprefix("passage_").removesuffix("_choice"),
            "new_phrasing": is_heldout_phrasing(question.question, index),
        },
    )


def make_unknown_row(
    name: str, short: str, *, draw: random.Random, heldout: bool
) -> dict[str, Any]:
    """A closed-book question about a made-up name; the true answer admits it."""
    asked = draw.choice(CLOSED_BOOK)
    index, form = choose_phrasing(asked, draw, heldout=heldout)
    told = short if asked == "module" else name
    return _row(
        format="unknown",
        id=f"unknown/{name}",
        group="made_up",
        prompt=form.format(name=name, short=short),
        truth={
            "name": name,
            "exists": False,
            "answer": NO_SUCH_NAME.format(name=told),
            "passage": None,
            "question": asked,
            "new_phrasing": is_heldout_phrasing(asked, index),
        },
    )


def make_off_topic_row(prompt: str) -> dict[str, Any]:
    return _row(
        format="unknown",
        id=f"off_topic/{prompt}",
        group="off_topic",
        prompt=prompt,
        truth={
            "name": None,
            "exists": False,
            "answer": OFF_TOPIC,
            "passage": None,
            "question": "off_topic",
            "new_phrasing": False,
        },
    )


def _row(
    *, format: str, id: str, group: str, prompt: str, truth: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "id": id,
        "format": format,
        "split_group": group,
        "messages": [user(prompt), assistant(truth["answer"])],
        "truth": dict(truth),
    }
