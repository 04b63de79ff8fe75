"""What is in data files before anything is built: shapes, counts, lengths, drops, an example."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rung.samples import STAGE_OF, Counts, Sample, read_samples
from rung.tasks.lengths import Lengths, Piece, measure, message_pieces, message_size
from rung.text.sources import find_sources
from rung.tokens.chat import Rendered, answer_ids, render
from rung.tokens.tokenizer import Tokenizer
from rung.tokens.views import fit_conversations

_NO_LIMIT = 2**31  # tokens


@dataclass
class Survey:
    """What was found. samples == kept + sum(dropped.values()); shortened ones are kept.

    A row is one sample, but for trees and for rows that several people judged. lengths: in
    characters of all that is usable, and in tokens of what fits where a tokenizer was given.
    """

    files: int = 0
    samples: int = 0
    kept: int = 0
    shortened: int = 0
    context: int | None = None
    counts: Counts = field(default_factory=Counts)
    kinds: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    passed_over: list[str] = field(default_factory=list)
    lengths: list[Lengths] = field(default_factory=list)
    example: list[Piece] = field(default_factory=list)
    example_at: str = ""

    def stages(self) -> list[str]:
        """The stages that take what is here."""
        return sorted({STAGE_OF[kind] for kind in self.kinds})

    def to_json(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in ("files", "samples", "kept", "shortened")},
            "context": self.context,
            **{key: _plain(value) for key, value in vars(self.counts).items()},
            "kinds": dict(self.kinds),
            "stages": self.stages(),
            "dropped": dict(self.dropped),
            "passed_over": self.passed_over,
            "lengths": {lengths.unit: lengths.to_json() for lengths in self.lengths},
            "example": [piece._asdict() for piece in self.example],
            "example_at": self.example_at,
        }


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Counter) else value


def survey(
    names: Sequence[str],
    *,
    tokenizer: Tokenizer | None = None,
    context: int | None = None,
    overlong: Literal["drop", "shorten"] = "drop",
    columns: Mapping[str, str] | None = None,
) -> Survey:
    """Every row of `names` (see rung/text/sources.py), kept or counted as dropped by cause.

    tokenizer: also lengths after its template. context: longer samples do not fit, tokens.
    Raises DataError as the stages do for a row of no known shape, wrong types, an empty file.
    """
    found = Survey(context=context)
    usable: dict[str, Sample] = {}
    for source in find_sources(names):
        found.files += len(source.files)
        found.passed_over += source.passed_over
        for sample in read_samples(source, found.counts, columns=columns):
            found.samples += 1
            found.kinds[sample.kind] += 1
            drop = sample.drop or ("duplicate" if sample.key in usable else "")
            if drop:
                found.dropped[drop] += 1
            else:
                usable[sample.key] = sample
    kept = list(usable.values())
    found.lengths = [measure(map(_characters, kept), unit="characters")]
    if tokenizer is not None:
        fitted = _fit(kept, tokenizer, context=context or _NO_LIMIT, overlong=overlong)
        found.dropped.update(fitted.dropped)
        found.shortened = fitted.shortened
        found.lengths.append(measure((size for _, size in fitted.kept), unit="tokens"))
        kept = [sample for sample, _ in fitted.kept]
    found.kept = len(kept)
    if kept:
        found.example = _pieces(kept[0]) if tokenizer is None else _token_pieces(kept[0], tokenizer)
        found.example_at = kept[0].where
    return found


@dataclass
class _Fitted:
    """Samples that fit, with (tokens, supervised tokens) each; the others by cause."""

    kept: list[tuple[Sample, tuple[int, int]]]
    dropped: Counter[str]
    shortened: int = 0


def _fit(
    samples: Sequence[Sample],
    tokenizer: Tokenizer,
    *,
    context: int,
    overlong: Literal["drop", "shorten"],
) -> _Fitted:
    """As the training stages would: a conversation by its whole length, a judged prompt by that
    and its longest answer. A document is cut to the context, and so always fits."""
    conversations = [sample for sample in samples if sample.kind == "conversation"]
    rows = [{"id": sample.where, "messages": sample.messages} for sample in conversations]
    rendered, report = fit_conversations(rows, tokenizer, context=context, overlong=overlong)
    fitted = _Fitted([], Counter(report.dropped), report.shortened)
    for index, tokens in rendered:
        size = (len(tokens.ids), tokens.num_supervised)
        fitted.kept.append((conversations[index], size))
    for sample in samples:
        if sample.kind == "conversation":
            continue
        if sample.text is not None:
            length = len(tokenizer.encode(sample.text)) + 1  # and its end
            fitted.kept.append((sample, (length, length if sample.kind == "text" else 0)))
            continue
        prompt, answers = _tokens_of_judged(sample, tokenizer)
        if len(prompt.ids) + max(answers) > context:
            fitted.dropped["too_long"] += 1
        else:
            size = (len(prompt.ids) + sum(answers), sum(answers))
            fitted.kept.append((sample, size))
    return fitted


def _tokens_of_judged(sample: Sample, tokenizer: Tokenizer) -> tuple[Rendered, list[int]]:
    """(the prompt, the length of each answer)."""
    prompt = render(tokenizer, sample.messages, generation_prompt=True, where=sample.where)
    return prompt, [len(answer_ids(tokenizer, answer)) for answer in sample.answers]


def _characters(sample: Sample) -> tuple[int, int]:
    """(length, what is trained on)."""
    if sample.kind == "conversation":
        return message_size(sample.messages)
    if sample.text is not None:
        return len(sample.text), len(sample.text) if sample.kind == "text" else 0
    answers = sum(map(len, sample.answers))
    return sum(len(message["content"]) for message in sample.messages) + answers, answers


def _pieces(sample: Sample) -> list[Piece]:
    """The sample as people read it."""
    if sample.text is not None:
        pieces = [Piece(sample.text, sample.kind == "text")]
        return pieces + [Piece(f"\nlabel: {label}", False) for label in sample.answers]
    if sample.kind == "conversation":
        return message_pieces(sample.messages)
    prompt = [piece._replace(trained=False) for piece in message_pieces(sample.messages)]
    for number, answer in enumerate(sample.answers, start=1):
        prompt += [Piece(f"\nanswer {number}: ", False), Piece(answer, True)]
    return prompt


def _token_pieces(sample: Sample, tokenizer: Tokenizer) -> list[Piece]:
    """The sample as the model sees it, special tokens by name."""
    if sample.text is not None:
        return _pieces(sample)
    if sample.kind == "conversation":
        return _runs(render(tokenizer, sample.messages, where=sample.where), tokenizer)
    prompt = render(tokenizer, sample.messages, generation_prompt=True, where=sample.where)
    pieces = [Piece(tokenizer.decode(prompt.ids, special=True), False)]
    for answer in sample.answers:
        text = tokenizer.decode(answer_ids(tokenizer, answer), special=True)
        pieces += [Piece("\n-> ", False), Piece(text, True)]
    return pieces


def _runs(rendered: Rendered, tokenizer: Tokenizer) -> list[Piece]:
    """Neighbouring tokens that are all trained on, or all not, as one piece."""
    pieces: list[Piece] = []
    start = 0
    trained = rendered.weights > 0
    for end in range(1, len(trained) + 1):
        if end == len(trained) or trained[end] != trained[start]:
            text = tokenizer.decode(rendered.ids[start:end], special=True)
            pieces.append(Piece(text, bool(trained[start])))
            start = end
    return pieces
