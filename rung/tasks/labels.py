"""Stage `labels`: texts with labels of your own files, one or several labels a text."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from rung.config import Config as BaseConfig
from rung.errors import DataError
from rung.store.artefact import canonical_json
from rung.store.context import Notes, StageContext
from rung.tasks.label_rows import Collected, collect
from rung.text.labelled import (
    EXAMPLE,
    Keys,
    Labelled,
    check_file,
    read_classes,
    read_labelled,
    read_lines,
    text_files,
)
from rung.text.rows import write_rows

_FEW = 20  # examples of a class below which a warning is due


class Config(BaseConfig):
    """Your own labelled texts: rows of tables, a folder per label, or a file per label."""

    files: tuple[str, ...] = Field(
        (), description=".jsonl .json .csv .tsv (also .gz) .parquet, a text and its label a row"
    )
    heldout_files: tuple[str, ...] = Field(
        (), description="rows to measure on; empty: a share of the rows is drawn"
    )
    folder: str | None = Field(None, description="a sub-folder per label, a text a file")
    lines: dict[str, str] = Field(
        default_factory=dict, description="label -> a file with one text a line"
    )
    text_key: str = Field("", description="key of the text; empty: the usual names")
    label_key: str = Field("", description="key of the label; empty: the usual names")
    separator: str = Field("", description="splits a label cell into several labels")
    names: dict[str | int, str] = Field(
        default_factory=dict, description="label in the file -> its name, as in {0: negative}"
    )
    multi_label: bool | None = Field(
        None, description="several labels a text; None: yes where a row lists none or several"
    )
    heldout_fraction: float = Field(
        0.2, gt=0, lt=1, description="share of rows kept out of training, where no file is given"
    )
    min_examples: int = Field(5, ge=1, description="training texts that a label must have")
    rare: Literal["refuse", "drop"] = Field(
        "refuse", description="a label with fewer: refuse the data, or leave its texts out"
    )
    seed: int = Field(0, description="seed of the split")


def fingerprint(config: Config) -> list[list[str]]:
    """Name and sha256 of every file: a changed file is another input."""
    paths = [check_file(name) for name in (*config.files, *config.heldout_files)]
    if config.folder:
        paths += text_files(Path(config.folder))
    for name in config.lines.values():
        paths += text_files(Path(name)) if Path(name).is_dir() else [Path(name)]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise DataError(f"{missing[0]}: no such file (in {Path.cwd()}); check `lines`")
    return [[str(path), hashlib.sha256(path.read_bytes()).hexdigest()] for path in paths]


def run(context: StageContext, config: Config) -> Notes:
    """labels: train.jsonl, heldout.jsonl ({"id", "text", "labels"}), labels.json and report.json.

    The side of a text is drawn from (seed, the text), so that a growing file moves none. The same
    text counts once; with two different labels it is a conflict, and none of its rows is kept.
    """
    train, heldout = _sources(config)
    if train is None:
        raise DataError(
            "no data: name files, a folder or lines, as in --set files=[my/reviews.csv];"
            f" a row is such as {EXAMPLE}"
        )
    found = collect(train, heldout, names=config.names, multi_label=config.multi_label)
    if heldout is None:
        found.draw_heldout(fraction=config.heldout_fraction, seed=config.seed)
    _check_sizes(found, config)
    for side in ("train", "heldout"):
        write_rows(context.out / f"{side}.jsonl", found.rows[side])
    counts = _label_counts(found)
    report = {
        "rows_read": found.num_read,
        "rows": {side: len(rows) for side, rows in found.rows.items()},
        "dropped": {reason: found.dropped[reason].to_json() for reason in sorted(found.dropped)},
        "labels": counts,
    }
    labels = {"labels": found.labels, "multi_label": found.multi_label}
    (context.out / "labels.json").write_text(canonical_json(labels) + "\n", encoding="utf-8")
    (context.out / "report.json").write_text(canonical_json(report) + "\n", encoding="utf-8")
    _say(context, found, counts)
    return {
        "counts": report,
        "figures": {
            "num_train": len(found.rows["train"]),
            "num_heldout": len(found.rows["heldout"]),
            "num_labels": len(found.labels),
        },
    }


def _sources(config: Config) -> tuple[Iterator[Labelled] | None, Iterator[Labelled] | None]:
    """(rows to train on, rows to measure on): None where the config names none."""
    given = [bool(config.files), bool(config.folder), bool(config.lines)]
    if sum(given) > 1:
        raise DataError("files, folder and lines are all ways to name the data; use one of them")
    keys = Keys(config.text_key, config.label_key, config.separator)
    heldout = _rows_of(config.heldout_files, keys) if config.heldout_files else None
    if config.files:
        return _rows_of(config.files, keys), heldout
    if config.lines:
        return _lines_of(config.lines), heldout
    if config.folder:
        folder = Path(config.folder)
        # the layout of large review collections: train/LABEL/*.txt beside test/LABEL/*.txt
        if heldout is None and (folder / "train").is_dir() and (folder / "test").is_dir():
            return read_classes(folder / "train"), read_classes(folder / "test")
        return read_classes(folder), heldout
    return None, heldout


def _rows_of(names: Sequence[str], keys: Keys) -> Iterator[Labelled]:
    paths = [check_file(name) for name in names]
    return (row for path in paths for row in read_labelled(path, keys))


def _lines_of(lines: Mapping[str, str]) -> Iterator[Labelled]:
    return (row for label, name in lines.items() for row in read_lines(Path(name), label))


def _label_counts(found: Collected) -> dict[str, dict[str, int]]:
    """Texts of each label on each side."""
    counts = {side: found.count(side) for side in ("train", "heldout")}
    return {label: {side: counts[side][label] for side in counts} for label in found.labels}


def _check_sizes(found: Collected, config: Config) -> None:
    """DataError unless there are two labels with enough texts each, and something to measure on."""
    counts = found.count("train")
    few = {label: counts[label] for label in found.labels if counts[label] < config.min_examples}
    if few and config.rare == "drop":
        found.drop_labels(set(few))
        few = {}
    if few:
        shown = ", ".join(f"{label} ({n})" for label, n in sorted(few.items())[:8])
        raise DataError(
            f"{len(few)} labels have fewer than {config.min_examples} texts to train on: {shown};"
            " add texts, leave these out with rare: drop, or lower min_examples"
        )
    if len(found.labels) < (1 if found.multi_label else 2):
        raise DataError(
            f"{len(found.labels)} labels with {config.min_examples} texts or more"
            f" ({', '.join(found.labels) or 'none'}): a classifier needs two; check label_key"
        )
    if not found.rows["heldout"]:
        raise DataError(
            f"none of {len(found.rows['train'])} texts fell on the held-out side; add texts or"
            f" raise heldout_fraction (now {config.heldout_fraction})"
        )


def _say(context: StageContext, found: Collected, counts: Mapping[str, Any]) -> None:
    say = context.progress.say
    kind = "several labels a text" if found.multi_label else "one label a text"
    dropped = {reason: entry.count for reason, entry in sorted(found.dropped.items())}
    say(
        f"labels: {len(found.rows['train']):,} texts to train on, {len(found.rows['heldout']):,}"
        f" held out, {len(found.labels)} labels, {kind}; dropped {dropped or 'none'}"
    )
    commonest = Counter({label: n["train"] for label, n in counts.items()})
    say("texts to train on: " + ", ".join(f"{k} {n:,}" for k, n in commonest.most_common(12)))
    few = [label for label, n in commonest.items() if n < _FEW]
    if few:
        say(
            f"few texts: {', '.join(few[:8])} with fewer than {_FEW} each; their figures will be"
            " rough and the labels hard to learn"
        )
    absent = [label for label, n in counts.items() if not n["heldout"]]
    if absent:
        say(f"not measured: no held-out text has {', '.join(absent[:8])}")
