"""Stage `feedback`: preferences that people gave, from files in the usual shapes."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import Field

from rung.config import Config as BaseConfig
from rung.errors import DataError
from rung.feedback.events import Event, as_rankings, parse_event
from rung.feedback.rankings import count_rankings, write_rankings
from rung.feedback.schema import Ranking
from rung.feedback.shapes import EXAMPLE, SHAPES, Judged, dense, from_ranking
from rung.store.artefact import canonical_json
from rung.store.context import Notes, StageContext
from rung.text.messages import has_blank, is_broken
from rung.text.rows import Row, Shape, find_shape
from rung.text.sources import find_sources, fingerprint_sources, source_rows


class Config(BaseConfig):
    """Your own preferences: files, folders of files, or data sets of the Hugging Face hub."""

    files: tuple[str, ...] = Field(
        default=(),
        description=".jsonl, .json, .csv, .tsv, .parquet, each also .gz, folders of them, "
        "or owner/name of a Hugging Face data set",
    )
    columns: dict[str, str] = Field(
        default={}, description="our key: the key that the files use for it, such as chosen: good"
    )
    annotator: str = Field(
        default="files", description="annotator id of rows that name none themselves"
    )


def fingerprint(config: Config) -> dict[str, str]:
    """sha256 of every file: a changed file is another input."""
    return fingerprint_sources(config.files)


@dataclass
class Readings:
    """What was read of all sources. records: by id, so that equal judgements count once."""

    records: dict[str, Ranking] = field(default_factory=dict)
    shapes: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)

    def take(self, judged: Judged, config: Config, *, shape: str) -> None:
        reason = why_dropped(judged)
        record = None if reason else _record(judged, config, shape=shape)
        if record is not None and record.id in self.records:
            reason = "duplicate"
        if reason or record is None:
            self.dropped[reason] += 1
        else:
            self.records[record.id] = record


def run(context: StageContext, config: Config) -> Notes:
    """feedback: rankings.jsonl and report.json.

    A row that states no preference (equal answers, an empty message, conversations that part
    before their last one) is dropped and counted by reason. The same judgement twice counts once.
    """
    found = read_sources(config)
    records = list(found.records.values())
    if not records:
        raise DataError(
            f"no usable preference in {', '.join(config.files)}; "
            f"dropped: {dict(found.dropped) or 'none'}"
        )
    write_rankings(context.out, records)
    report = count_rankings(records)
    report |= {
        "shapes": dict(sorted(found.shapes.items())),
        "dropped": dict(sorted(found.dropped.items())),
        "unused_keys": dict(sorted(found.unused.items())),
    }
    (context.out / "report.json").write_text(canonical_json(report) + "\n", encoding="utf-8")
    labels = f", labels {report['labels']}" if "labels" in report else ""
    context.progress.say(
        f"feedback: {report['rankings']} rankings of {report['prompts']} prompts, "
        f"{report['pairs']} pairs{labels}; dropped {found.dropped.total()} {dict(found.dropped)}"
    )
    if found.unused:
        keys = ", ".join(f"{key} ({count:,})" for key, count in report["unused_keys"].items())
        context.progress.say(f"feedback: keys that are not used: {keys}")
    return {"counts": report, "figures": {"num_pairs": report["pairs"]}}


def read_sources(config: Config) -> Readings:
    """Every judgement of every source, kept or counted as dropped."""
    found = Readings()
    solutions: list[Judged] = []
    events: list[Event] = []
    for source in find_sources(config.files):
        for where, raw in source_rows(source, example=EXAMPLE, columns=config.columns):
            shape, judgements = read_judgements(raw, where=where)
            found.shapes[shape.name] += 1
            found.unused.update(shape.unused(raw))
            if shape.name == "stepwise":
                solutions += judgements
                continue
            if shape.name == "chat event":
                events.append(parse_event(raw, where=where))
                continue
            if not judgements:
                found.dropped["no_ranked_replies"] += 1
            for judged in judgements:
                found.take(judged, config, shape=shape.name)
    for judged in rank_solutions(solutions):
        found.take(judged, config, shape="stepwise")
    for ranking in as_rankings(events):
        found.take(from_ranking(ranking), config, shape="chat event")
    return found


def read_judgements(raw: Row, *, where: str) -> tuple[Shape, list[Judged]]:
    """(shape, judgements) of a row: most shapes hold one, a tree any number, also none."""
    shape = find_shape(raw, SHAPES, where=where)
    judged: Judged | list[Judged] = shape.read({**raw, "where": where})
    return shape, judged if isinstance(judged, list) else [judged]


def rank_solutions(solutions: Sequence[Judged]) -> Iterator[Judged]:
    """Solutions of one prompt as one ranking; a prompt with a single one is dropped."""
    by_prompt: dict[str, list[Judged]] = {}
    for judged in solutions:
        by_prompt.setdefault(canonical_json([judged.prompt, judged.annotator]), []).append(judged)
    for same in by_prompt.values():
        ratings = {judged.answers[0]: judged.ratings[0] for judged in same if judged.ratings}
        first = replace(
            same[0],
            answers=list(ratings),
            ranks=dense([-rating for rating in ratings.values()]),
            flags=[[] for _ in ratings],
            ratings=list(ratings.values()),
        )
        yield first if len(ratings) > 1 else replace(first, drop="only_solution_of_its_prompt")


def why_dropped(judged: Judged) -> str:
    """Why a judgement cannot be used, "" if it can."""
    if judged.drop:
        return judged.drop
    if has_blank(judged.prompt):
        return "empty_message"
    if any(not answer.strip() for answer in judged.answers):
        return "empty_answer"
    if len(judged.answers) > 1 and len(set(judged.answers)) == 1:
        return "equal_answers"
    texts = [*judged.answers, *(message["content"] for message in judged.prompt)]
    return "half_a_character" if any(map(is_broken, texts)) else ""


def _record(judged: Judged, config: Config, *, shape: str) -> Ranking:
    annotator = judged.annotator or config.annotator
    content: list[Any] = [judged.prompt, judged.answers, judged.ranks, judged.flags, annotator]
    if judged.labels is not None:
        content.append({"labels": judged.labels})
    digest = hashlib.sha256(canonical_json(content).encode()).hexdigest()
    return Ranking(
        id=f"human/{digest[:16]}",
        prompt=judged.prompt,
        answers=judged.answers,
        stopped=judged.stopped or [True] * len(judged.answers),
        ranks=judged.ranks,
        flags=judged.flags,
        ratings=judged.ratings,
        annotator=annotator,
        kind="human",
        source={"format": "conversation", "shape": shape, "truth": None, **judged.source},
        labels=judged.labels,
        margin=judged.margin,
        weight=judged.weight,
    )
