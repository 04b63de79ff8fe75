"""Rows of data files as samples: what each is, whatever stage it is for.

The readers and the reasons for dropping a row are those of the stages `dataset` and `feedback`, so
what is recognised here is what they will take.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rung.errors import DataError
from rung.feedback.files import read_judgements
from rung.feedback.files import why_dropped as why_judgement_dropped
from rung.feedback.shapes import SHAPES as JUDGED_SHAPES
from rung.store.artefact import canonical_json
from rung.tasks.files import why_dropped as why_conversation_dropped
from rung.tasks.shapes import EXAMPLE, LABELLED, label_text, read_conversation, unused_keys
from rung.tasks.shapes import SHAPES as CONVERSATION_SHAPES
from rung.text.messages import Message, is_broken
from rung.text.rows import Row, Shape, find_shape
from rung.text.sources import Source, source_rows

Kind = Literal["conversation", "preference", "unpaired", "text", "classification"]
STAGE_OF: Mapping[str, str] = {
    "conversation": "dataset",
    "preference": "feedback",
    "unpaired": "feedback",
    "text": "curate",
    "classification": "labels (or dataset: a question about labels)",
}


TEXT = Shape("text", ("text",), '{"text": "One document as plain text."}', lambda row: row["text"])
# A tree can be both; it is shown as the conversation along its best replies.
_JUDGED = tuple(shape for shape in JUDGED_SHAPES if shape.name != "tree")
SHAPES = (*_JUDGED, *CONVERSATION_SHAPES, TEXT)


def _shapes_of(row: Row) -> Sequence[Shape]:
    """Those a row can be of. A label that is a word says what a row is about, not how good."""
    if row.get("label", True) in (True, False):  # 1 and 0, too
        return SHAPES
    return tuple(shape for shape in SHAPES if shape not in _JUDGED or "label" not in shape.keys)


@dataclass(frozen=True)
class Sample:
    """What a stage would make of a row, or of a part of it. drop: why it would not use it, or "".

    messages: with answers that are trained on. answers: of a judged prompt, trained on each by
    itself. text: of a document or a labelled text. verdict: what was said of the answers, by whom.
    """

    kind: Kind
    where: str
    drop: str = ""
    messages: Sequence[Message] = ()
    answers: Sequence[str] = ()
    text: str | None = None
    verdict: object = None

    @property
    def key(self) -> str:
        """Equal for samples of equal content."""
        return canonical_json([self.kind, self.messages, self.answers, self.text, self.verdict])


@dataclass
class Counts:
    """What the rows were. shapes: shape -> rows. first: shape -> place of its first row.
    unused: key that no shape reads -> rows. labels: of classification rows."""

    rows: int = 0
    shapes: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    unused: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)


def read_samples(
    source: Source, counts: Counts, *, columns: Mapping[str, str] | None = None
) -> Iterator[Sample]:
    """The samples of every row: at least one each. DataError as the stages raise it."""
    for where, row in source_rows(source, example=EXAMPLE, columns=columns):
        shape = find_shape(row, _shapes_of(row), where=where)
        counts.rows += 1
        counts.shapes[shape.name] += 1
        counts.first.setdefault(shape.name, where)
        counts.unused.update(unused_keys(shape, row))
        yield from _samples(shape, row, counts, where=where)


def _samples(shape: Shape, row: Row, counts: Counts, *, where: str) -> Iterator[Sample]:
    if shape in _JUDGED:
        _, judgements = read_judgements(row, where=where)
        for judged in judgements:
            # one solution alone is no preference yet; the stage ranks those of a prompt
            drop = "" if shape.name == "stepwise" else why_judgement_dropped(judged)
            said = (judged.ranks, judged.flags, judged.ratings, judged.labels, judged.annotator)
            kind: Kind = "preference" if judged.labels is None else "unpaired"
            yield Sample(kind, where, drop, judged.prompt, judged.answers, verdict=said)
        if not judgements:
            yield Sample("preference", where, "no_ranked_replies")
    elif shape is LABELLED or shape is TEXT:
        yield _of_text(shape, row, counts, where=where)
    else:
        _, messages = read_conversation(row, where=where)
        yield Sample("conversation", where, why_conversation_dropped(messages), messages)


def _of_text(shape: Shape, row: Row, counts: Counts, *, where: str) -> Sample:
    text = row["text"]
    if not isinstance(text, str):
        raise DataError(f"{where}: text is {type(text).__name__}, it must be text")
    drop = "" if text.strip() else "empty_text"
    if is_broken(text):
        drop = "half_a_character"
    if shape is TEXT:
        return Sample("text", where, drop, text=text)
    label = label_text(row["label"], where=where)
    counts.labels.update(label.split(", "))
    return Sample("classification", where, drop, answers=[label], text=text)
