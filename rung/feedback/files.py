"""Stage `feedback`: preferences that people gave, from files in the usual shapes."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import Field

from rung.config import Config as BaseConfig
from rung.errors import DataError
from rung.feedback.rankings import count_rankings, write_rankings
from rung.feedback.schema import Ranking
from rung.feedback.shapes import EXAMPLE, SHAPES, Judged
from rung.store.artefact import canonical_json
from rung.store.context import Notes, StageContext
from rung.text.messages import has_blank
from rung.text.rows import find_shape, read_rows


class Config(BaseConfig):
    """Your own preferences: .jsonl, .json (a list), each also .gz."""

    files: tuple[str, ...] = Field(
        default=(), description="files with one judged prompt a line (.jsonl) or a list (.json)"
    )
    annotator: str = Field(
        default="files", description="annotator id of rows that name none themselves"
    )


def fingerprint(config: Config) -> dict[str, str]:
    """sha256 of every file: a changed file is another input."""
    return {name: hashlib.sha256(_existing(name).read_bytes()).hexdigest() for name in config.files}


def run(context: StageContext, config: Config) -> Notes:
    """feedback: rankings.jsonl and report.json.

    A row that states no preference (equal answers, an empty message, conversations that part
    before their last one) is dropped and counted by reason. The same judgement twice counts once.
    """
    if not config.files:
        raise DataError("files is empty; name at least one, as in --set files=[my/pairs.jsonl]")
    shapes: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    records: dict[str, Ranking] = {}
    for name in config.files:
        for line, raw in read_rows(_existing(name), example=EXAMPLE):
            where = f"{name}:{line}"
            shape = find_shape(raw, SHAPES, where=where)
            shapes[shape.name] += 1
            judged: Judged = shape.read({**raw, "where": where})
            reason = _why_dropped(judged)
            record = None if reason else _record(judged, config, shape=shape.name)
            if record is not None and record.id in records:
                reason = "duplicate"
            if reason or record is None:
                dropped[reason] += 1
            else:
                records[record.id] = record
    if not records:
        raise DataError(
            f"no usable preference in {', '.join(config.files)}; dropped: {dict(dropped) or 'none'}"
        )
    write_rankings(context.out, records.values())
    report = count_rankings(list(records.values()))
    report |= {"shapes": dict(sorted(shapes.items())), "dropped": dict(sorted(dropped.items()))}
    (context.out / "report.json").write_text(canonical_json(report) + "\n", encoding="utf-8")
    labels = f", labels {report['labels']}" if "labels" in report else ""
    context.progress.say(
        f"feedback: {report['rankings']} rankings of {report['prompts']} prompts, "
        f"{report['pairs']} pairs{labels}; dropped {sum(dropped.values())} {dict(dropped)}"
    )
    return {"counts": report, "figures": {"num_pairs": report["pairs"]}}


def _existing(name: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise DataError(f"{name}: no such file (in {Path.cwd()}); check `files`")
    return path


def _why_dropped(judged: Judged) -> str:
    if judged.drop:
        return judged.drop
    if has_blank(judged.prompt):
        return "empty_message"
    if any(not answer.strip() for answer in judged.answers):
        return "empty_answer"
    if len(judged.answers) > 1 and len(set(judged.answers)) == 1:
        return "equal_answers"
    return ""


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
        stopped=[True] * len(judged.answers),
        ranks=judged.ranks,
        flags=judged.flags,
        ratings=judged.ratings,
        annotator=annotator,
        kind="human",
        source={"format": "conversation", "shape": shape, "truth": None},
        labels=judged.labels,
        margin=judged.margin,
        weight=judged.weight,
    )
