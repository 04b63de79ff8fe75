"""Stage `instruct`: questions with true answers about what the corpora document.

Six formats: explain, signature, module (classification), summarise, passage (the answer is in the
prompt) and unknown (made-up names and other topics: the true answer admits it). A name is used in
one file only; names of modules that are `text_only` or `nowhere` are used in heldout.jsonl only.
"""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from rung.config import Config as BaseConfig
from rung.errors import DataError
from rung.store.artefact import canonical_json
from rung.store.context import Notes, StageContext
from rung.tasks.entries import Entry, Library, load_library
from rung.tasks.made_up import NameForge
from rung.tasks.phrasings import off_topic_questions
from rung.tasks.questions import CLOSED_BOOK, Limits, make_off_topic_row
from rung.tasks.sample import Source, made_up_rows, real_rows
from rung.text.rows import Row, write_rows

# Which cells heldout.jsonl has. Closed-book questions about modules that were never seen can only
# be guessed, so `nowhere` has the formats whose answer is in the prompt.
HELDOUT_FORMATS = {
    "seen": ("explain", "signature", "module", "summarise", "passage"),
    "text_only": CLOSED_BOOK,
    "nowhere": ("summarise", "passage"),
}
MAX_OFF_TOPIC = 0.02  # of train.jsonl
GROUP_OF_PART = {"instruct": "seen", "text_only": "text_only", "nowhere": "nowhere"}


class Mix(BaseConfig):
    """Relative shares of the formats about real names."""

    explain: float = Field(default=0.28, ge=0, description="what does it do")
    signature: float = Field(default=0.12, ge=0, description="its arguments")
    module: float = Field(default=0.18, ge=0, description="which module it is in")
    summarise: float = Field(default=0.16, ge=0, description="documentation to one sentence")
    passage: float = Field(default=0.26, ge=0, description="a question about a given passage")

    def counts(self, total: int) -> dict[str, int]:
        """Rows per format; they add up to `total`."""
        shares = {name: getattr(self, name) for name in type(self).model_fields}
        if sum(shares.values()) <= 0:
            raise DataError("all shares of the mix are 0; give one format a share above 0")
        counts, before = {}, 0.0
        for name, share in shares.items():
            after = before + share * total / sum(shares.values())
            counts[name] = round(after) - round(before)
            before = after
        return counts


class Config(BaseConfig):
    """Questions and true answers from the documentation in the corpora."""

    seed: int = Field(0, description="seed of splits, wordings and made-up names")
    train_rows: int = Field(12_000, ge=1, description="rows of train.jsonl at most")
    prompts: int = Field(2_000, ge=0, description="rows of prompts.jsonl at most")
    heldout_per_cell: int = Field(
        40, ge=1, description="rows of heldout.jsonl per format and split group at most"
    )
    heldout_made_up: int = Field(80, ge=0, description="rows of heldout.jsonl on made-up names")
    heldout_off_topic: int = Field(12, ge=0, description="rows of heldout.jsonl on other topics")
    train_made_up: float = Field(
        0.07,
        ge=0,
        lt=1,
        description="share of train.jsonl on made-up names; small, so that there "
        "is something left for RL to improve",
    )
    prompts_made_up: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="share of prompts.jsonl on made-up names; above a third of "
        "the closed-book prompts, refusing everything becomes the best policy",
    )
    coined: float = Field(
        0.6,
        ge=0,
        le=1,
        description="share of made-up names with a coined word; the others recombine real words",
    )
    heldout_names: float = Field(0.08, gt=0, lt=1, description="share of names kept for heldout")
    prompt_names: float = Field(0.22, ge=0, lt=1, description="share of names kept for prompts")
    train_mix: Mix = Field(Mix(), description="formats of train.jsonl")
    prompts_mix: Mix = Field(
        Mix(explain=0.36, signature=0.16, module=0.16, summarise=0.12, passage=0.20),
        description="formats of prompts.jsonl",
    )
    passage_words: int = Field(100, ge=20, description="words of a passage at most")
    prompt_chars: int = Field(900, ge=200, description="characters of a prompt at most")


def run(context: StageContext, config: Config) -> Notes:
    """dataset: train.jsonl, heldout.jsonl, prompts.jsonl and report.json with all counts."""
    corpora = context.many["corpora"]
    context.progress.say(f"instruct: reading {len(corpora)} corpora")
    library = load_library([corpus.file("documents.parquet") for corpus in corpora])
    limits = Limits(config.passage_words, config.prompt_chars)
    source = Source(library, limits, library.modules(), config.seed)
    names = split_names(library.entries, config)
    forge = _forge(library, config)
    heldout = build_heldout(source, names, forge, config)
    prompts = build_prompts(source, names["prompts"], forge, config)
    train = build_train(source, names["train"], forge, config)
    files = {"train": train, "heldout": heldout, "prompts": prompts}
    if not train:
        raise DataError(
            f"none of {len(library.entries)} documented names gave a question for training: none "
            'lies in a document of part "instruct"; give the corpora a larger share of it'
        )
    for name, rows in files.items():
        write_rows(context.out / f"{name}.jsonl", rows)
    report = {
        "names": {side: len(entries) for side, entries in sorted(names.items())},
        "unusable_entries": library.unusable,
        "ambiguous_short_names": len(library.ambiguous),
        **{name: describe(rows) for name, rows in files.items()},
    }
    (context.out / "report.json").write_text(canonical_json(report) + "\n", encoding="utf-8")
    _say_counts(context, files)
    return {"counts": report, "figures": {f"num_{name}": len(rows) for name, rows in files.items()}}


def split_names(entries: Sequence[Entry], config: Config) -> dict[str, list[Entry]]:
    """Entries by side: train, prompts, seen (held out of instruct modules), text_only, nowhere.

    The side of a name is drawn from (seed, name) alone.
    """
    sides: dict[str, list[Entry]] = {
        side: [] for side in ("train", "prompts", "seen", "text_only", "nowhere")
    }
    for entry in entries:
        side = GROUP_OF_PART[entry.part]
        if side == "seen":
            unit = random.Random(f"{config.seed}/side/{entry.name}").random()
            if unit >= config.heldout_names + config.prompt_names:
                side = "train"
            elif unit >= config.heldout_names:
                side = "prompts"
        sides[side].append(entry)
    return sides


def build_heldout(
    source: Source, names: dict[str, list[Entry]], forge: NameForge | None, config: Config
) -> list[Row]:
    """Equal numbers per format and split group, then made-up names, then other topics."""
    rows: list[Row] = []
    for group, formats in HELDOUT_FORMATS.items():
        for format in formats:
            rows += real_rows(
                source,
                names[group],
                format=format,
                num=config.heldout_per_cell,
                group=group,
                side="heldout",
            )
    rows += made_up_rows(source, forge, num=config.heldout_made_up, side="heldout")
    rows += [make_off_topic_row(text) for text in _off_topic(config)[: config.heldout_off_topic]]
    return rows


def build_prompts(
    source: Source, entries: Sequence[Entry], forge: NameForge | None, config: Config
) -> list[Row]:
    """Prompts for preferences and RL, shuffled: the first N are a fair sample."""
    num_made_up = round(config.prompts * config.prompts_made_up)
    rows = made_up_rows(source, forge, num=num_made_up, side="prompts")
    for format, num in config.prompts_mix.counts(config.prompts - num_made_up).items():
        rows += real_rows(source, entries, format=format, num=num, group="seen", side="prompts")
    source.draw("order", "prompts").shuffle(rows)
    return rows


def build_train(
    source: Source, entries: Sequence[Entry], forge: NameForge | None, config: Config
) -> list[Row]:
    """Rows to learn from, shuffled. Too few names for a format make fewer rows, keeping shares."""
    num_made_up = round(config.train_rows * config.train_made_up)
    num_off_topic = round(config.train_rows * MAX_OFF_TOPIC)
    off_topic = [make_off_topic_row(text) for text in _off_topic(config)]
    off_topic = off_topic[config.heldout_off_topic :][:num_off_topic]
    num_real = max(1, config.train_rows - num_made_up - len(off_topic))
    rows: list[Row] = []
    for format, num in config.train_mix.counts(num_real).items():
        rows += real_rows(source, entries, format=format, num=num, group="seen", side="train")
    fill = len(rows) / num_real  # below 1 for a small corpus: refusals keep their share
    rows += made_up_rows(source, forge, num=round(fill * num_made_up), side="train")
    rows += off_topic[: round(fill * len(off_topic))]
    source.draw("order", "train").shuffle(rows)
    return rows


def _forge(library: Library, config: Config) -> NameForge | None:
    wanted = (config.heldout_made_up, config.train_made_up, config.prompts_made_up)
    return NameForge(library, coined=config.coined) if any(wanted) else None


def _off_topic(config: Config) -> list[str]:
    questions = off_topic_questions()
    random.Random(f"{config.seed}/off_topic").shuffle(questions)
    return questions


def describe(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts per format and split group, refusals and lengths of one file, for the report."""
    per_cell = Counter(f"{row['format']}/{row['split_group']}" for row in rows)
    characters = [sum(len(m["content"]) for m in row["messages"]) for row in rows]
    return {
        "rows": len(rows),
        "per_cell": dict(sorted(per_cell.items())),
        "refusals": sum(not row["truth"]["exists"] for row in rows),
        "new_phrasing": sum(row["truth"]["new_phrasing"] for row in rows),
        "mean_characters": round(sum(characters) / len(rows), 1) if rows else 0.0,
        "max_characters": max(characters, default=0),
    }


def _say_counts(context: StageContext, files: dict[str, list[Row]]) -> None:
    for name, rows in files.items():
        groups = Counter(row["split_group"] for row in rows)
        told = ", ".join(f"{group} {count}" for group, count in sorted(groups.items()))
        context.progress.say(f"instruct: {name} {len(rows)} rows ({told})")
