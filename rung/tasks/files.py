"""Stage `dataset`: conversations and instructions of your own files, in the usual shapes."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from rung.config import Config as BaseConfig
from rung.errors import DataError
from rung.store.artefact import canonical_json
from rung.store.context import Notes, StageContext
from rung.tasks.lengths import bracketed, measure, message_pieces, message_size, shorten
from rung.tasks.mix import count_formats, describe_formats, mix_rows
from rung.tasks.shapes import EXAMPLE, LABELLED, SHAPES, read_conversation, unused_keys
from rung.text.messages import Message, assistant, has_blank, is_broken
from rung.text.rows import Row, write_rows
from rung.text.sources import Source, find_sources, fingerprint_sources, source_rows

__all__ = ["SHAPES", "Config", "fingerprint", "run"]

MAX_LABELS = 40  # more than these are not listed in the question of a classification row


class Config(BaseConfig):
    """Your own rows: files, folders of files, or data sets of the Hugging Face hub."""

    files: tuple[str, ...] = Field(
        default=(),
        description=".jsonl, .json, .csv, .tsv, .parquet, each also .gz, folders of them, "
        "or owner/name of a Hugging Face data set",
    )
    columns: dict[str, str] = Field(
        default={}, description="our key: the key that the files use for it, such as output: answer"
    )
    ignore: tuple[str, ...] = Field(default=(), description="keys to pass over knowingly")
    weights: dict[str, float] = Field(
        default={}, description="share of each format in train.jsonl, in any unit; none: all rows"
    )
    repeat: int = Field(
        default=1, ge=1, description="how often a row may be used at most to reach its share"
    )
    heldout_fraction: float = Field(
        default=0.05, ge=0, lt=1, description="share of rows kept out of training for evaluation"
    )
    prompts_fraction: float = Field(
        default=0.0, ge=0, lt=1, description="share of rows kept as prompts for preferences and RL"
    )
    seed: int = Field(default=0, description="seed of the split and of the mix")


def fingerprint(config: Config) -> dict[str, str]:
    """sha256 of every file: a changed file is another input."""
    return fingerprint_sources(config.files)


@dataclass
class Readings:
    """What was read of all sources. rows: by id, so that equal conversations count once."""

    rows: dict[str, Row] = field(default_factory=dict)
    num_read: int = 0
    shapes: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    passed_over: list[str] = field(default_factory=list)


def run(context: StageContext, config: Config) -> Notes:
    """dataset: train.jsonl, heldout.jsonl, prompts.jsonl and report.json.

    Rows with a prompt and no answer go to prompts.jsonl. Rows with an empty message are dropped
    and counted, equal conversations count once, so that none lies on both sides. The side of a row
    is drawn from (seed, its content). `weights` mix the training rows only: figures on held-out
    rows are per format.
    """
    found = read_sources(config)
    rows = list(found.rows.values())
    if not rows:
        raise DataError(
            f"no usable rows in {', '.join(config.files)} ({found.num_read} read, "
            f"{found.dropped['empty_message']} with an empty message); for example {EXAMPLE}"
        )
    files = _split(rows, config)
    available = count_formats(files["train"])
    if config.weights:
        files["train"] = mix_rows(
            files["train"], config.weights, repeat=config.repeat, seed=config.seed
        )
    if not files["train"]:
        raise DataError(
            f"all {len(rows)} rows fell on prompts or the held-out side, none is left to train on; "
            "add rows with answers or lower heldout_fraction and prompts_fraction"
        )
    for side, of_side in files.items():
        write_rows(context.out / f"{side}.jsonl", of_side)
    lengths = measure((message_size(row["messages"]) for row in rows), unit="characters")
    report = {
        "rows_read": found.num_read,
        "shapes": dict(sorted(found.shapes.items())),
        "dropped": {reason: count for reason, count in sorted(found.dropped.items()) if count},
        "unused_keys": dict(sorted(found.unused.items())),
        "passed_over": found.passed_over,
        "rows": {side: len(of_side) for side, of_side in files.items()},
        "without_answer": sum(not row["truth"]["answer"] for row in rows),
        "formats": {"available": available, "train": count_formats(files["train"])},
        "lengths": lengths.to_json(),
    }
    (context.out / "report.json").write_text(canonical_json(report) + "\n", encoding="utf-8")
    _say(context, report, lengths.describe(), example=files["train"][0])
    return {"counts": report, "figures": {f"num_{k}": len(v) for k, v in files.items()}}


def read_sources(config: Config) -> Readings:
    """Every row of every source, kept or counted as dropped."""
    found = Readings()
    for source in find_sources(config.files):
        found.passed_over += source.passed_over
        for messages, label in _conversations(source, config, found):
            row = _instruction_row(messages, format=label)
            found.dropped["duplicate"] += row["id"] in found.rows
            found.rows.setdefault(row["id"], row)
    return found


def _conversations(
    source: Source, config: Config, found: Readings
) -> list[tuple[list[Message], str]]:
    """(messages, format) of the rows of one source that can be used."""
    kept: list[tuple[list[Message], str]] = []
    labelled: list[int] = []
    for where, raw in source_rows(source, example=EXAMPLE, columns=config.columns):
        shape, messages = read_conversation(raw, where=where, ignore=config.ignore)
        found.num_read += 1
        found.shapes[shape.name] += 1
        found.unused.update(key for key in unused_keys(shape, raw) if key not in config.ignore)
        reason = why_dropped(messages)
        if reason:
            found.dropped[reason] += 1
            continue
        if shape is LABELLED:
            labelled.append(len(kept))
        own = raw.get("format")
        kept.append((messages, own if isinstance(own, str) and own.strip() else source.label))
    ask_for_labels([kept[i][0] for i in labelled])
    return kept


def why_dropped(messages: Sequence[Message]) -> str:
    """Why a conversation cannot be used, "" if it can."""
    if has_blank(list(messages)):
        return "empty_message"
    if any(is_broken(message["content"]) for message in messages):
        return "half_a_character"
    return ""


def ask_for_labels(conversations: Sequence[list[Message]]) -> None:
    """Make a question of texts with labels: which one fits, of those that occur."""
    labels = sorted({label for c in conversations for label in c[-1]["content"].split(", ")})
    listed = f" Labels: {', '.join(labels)}." if len(labels) <= MAX_LABELS else ""
    for first, *_ in conversations:
        first["content"] = f"Which label fits this text?{listed}\n\n{first['content']}"


def _say(context: StageContext, report: Mapping[str, Any], lengths: str, *, example: Row) -> None:
    """The same summary as `rung data show` gives before anything is built, but for tokens."""
    say = context.progress.say
    shapes = ", ".join(f"{count:,} {name}" for name, count in report["shapes"].items())
    say(f"dataset: {report['rows_read']:,} rows read ({shapes}); {lengths}")
    say(f"dataset: {report['rows']} from them; dropped {report['dropped']}")
    if report["unused_keys"]:
        keys = ", ".join(f"{key} ({count:,})" for key, count in report["unused_keys"].items())
        say(f"dataset: keys that are not used: {keys}")
    if report["passed_over"]:
        say(f"dataset: files passed over: {', '.join(report['passed_over'][:8])}")
    if len(report["formats"]["available"]) > 1:
        say(f"dataset: train.jsonl has {describe_formats(report['formats']['train'])}")
    say(
        "dataset: one row, what is trained on in [brackets]:\n"
        + bracketed(shorten(message_pieces(example["messages"])))
    )


def _instruction_row(messages: list[Message], *, format: str) -> Row:
    """The row of docs/design.md; the last assistant message is the reference answer, "" if none."""
    if messages[-1]["role"] == "user":
        messages = [*messages, assistant("")]
    digest = hashlib.sha256(canonical_json(messages).encode()).hexdigest()
    return {
        "id": f"files/{digest[:16]}",
        "format": format,
        "split_group": "files",
        "messages": messages,
        "truth": {
            "name": None,
            "exists": True,
            "answer": messages[-1]["content"],
            "passage": None,
            "question": "conversation",
            "new_phrasing": False,
        },
    }


def _split(rows: Sequence[Row], config: Config) -> dict[str, list[Row]]:
    sides: dict[str, list[Row]] = {"train": [], "heldout": [], "prompts": []}
    for row in rows:
        drawn = hashlib.sha256(f"{config.seed}/{row['id']}".encode()).digest()
        unit = int.from_bytes(drawn[:8], "big") / 2**64
        if not row["truth"]["answer"] or unit >= 1 - config.prompts_fraction:
            sides["prompts"].append(row)
        elif unit < config.heldout_fraction:
            sides["heldout"].append(row)
        else:
            sides["train"].append(row)
    return sides
