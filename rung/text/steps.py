"""The steps of curation, in order: each takes the frame of all documents and returns it.

A step never removes a row: it names a `reason`, and the next steps pass over that row. So counts
and examples per reason need no bookkeeping, and a new filter is one more line in STEPS.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pydantic

from rung.config import Config
from rung.text.dedup import Dedup, exact_duplicates, near_duplicates
from rung.text.engine import daft
from rung.text.normalise import normalise
from rung.text.pii import redact
from rung.text.rules import Rules, reason_to_drop
from rung.text.split import NOWHERE, assign_parts, fill_budget

MIN_GROUPS = 5  # a domain of fewer groups (one long file) is split by document instead

col, DataType = daft.col, daft.DataType
coalesce, when = daft.functions.coalesce, daft.functions.when


class Split(Config):
    """Shares of every domain's bytes, drawn by whole groups (modules, files)."""

    heldout: float = pydantic.Field(
        0.05, ge=0, lt=0.5, description='part "nowhere": in no training text, for figures only'
    )
    text_only: float = pydantic.Field(
        0.15, ge=0, lt=0.5, description="in the text, but never in instructions"
    )


class Settings(NamedTuple):
    """What the steps read of the stage's config."""

    rules: Rules
    dedup: Dedup
    pii: bool
    split: Split
    max_bytes: int | None
    max_domain_bytes: int | None
    seed: int


Step = Callable[[daft.DataFrame, Settings], daft.DataFrame]


def _live(frame: daft.DataFrame) -> daft.DataFrame:
    return frame.where(col("reason").is_null())


def clean_text(frame: daft.DataFrame, settings: Settings) -> daft.DataFrame:
    """Normalised text for every document."""
    apply = daft.func(normalise, return_dtype=DataType.string(), use_process=False)
    return frame.with_columns(
        {"text": apply(col("text")), "twin": daft.lit(None).cast(DataType.int64())}
    )


def apply_rules(frame: daft.DataFrame, settings: Settings) -> daft.DataFrame:
    """The first of the named reasons that applies."""

    @daft.func(return_dtype=DataType.string(), use_process=False)
    def judge(text: str) -> str | None:
        return reason_to_drop(text, settings.rules)

    return frame.with_column("reason", judge(col("text")))


def drop_exact(frame: daft.DataFrame, settings: Settings) -> daft.DataFrame:
    """exact_duplicate: equal to an earlier document but for case and spacing."""
    twins = exact_duplicates(_live(frame)) if settings.dedup.exact else {}
    return _drop(frame, twins, reason="exact_duplicate")


def drop_near(frame: daft.DataFrame, settings: Settings) -> daft.DataFrame:
    """near_duplicate: nearly all shingles shared with an earlier document."""
    twins: dict[int, int] = {}
    if settings.dedup.near:
        twins = near_duplicates(_live(frame), settings.dedup, seed=settings.seed)
    return _drop(frame, twins, reason="near_duplicate")


def redact_text(frame: daft.DataFrame, settings: Settings) -> daft.DataFrame:
    """Placeholders in text and meta; `redactions` counts by kind (JSON, "" for none)."""
    fields = {name: DataType.string() for name in ("text", "meta", "redactions")}

    @daft.func(return_dtype=DataType.struct(fields), unnest=True, use_process=False)
    def apply(text: str, meta: str, reason: str | None) -> dict[str, str]:
        found: dict[str, int] = {}
        if reason is None and settings.pii:
            text, found = redact(text)
        if found:
            meta = json.dumps(_redact_strings(json.loads(meta)), sort_keys=True)
        return {"text": text, "meta": meta, "redactions": json.dumps(found) if found else ""}

    others = [name for name in frame.column_names if name not in ("text", "meta")]
    return frame.select(*others, apply(col("text"), col("meta"), col("reason")))


def _redact_strings(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)[0]
    if isinstance(value, list):
        return [_redact_strings(item) for item in value]
    if isinstance(value, dict):
        return {key: _redact_strings(item) for key, item in value.items()}
    return value


def divide_small_domains(frame: daft.DataFrame, settings: Settings) -> daft.DataFrame:
    """Documents as groups of their own where a domain has too few groups to hold one out."""
    counts = _live(frame).groupby("domain").agg(col("group").count_distinct().alias("num_groups"))
    frame = frame.join(counts, on="domain", how="left")
    group = when(col("num_groups") < daft.lit(MIN_GROUPS), col("id")).otherwise(col("group"))
    return frame.with_column("group", group).exclude("num_groups")


def apply_budget(frame: daft.DataFrame, settings: Settings) -> daft.DataFrame:
    """over_budget: groups that the byte limits leave out."""
    sizes = _group_sizes(frame)
    kept = dict(sizes)
    if settings.max_domain_bytes is not None:
        for domain in sorted({domain for domain, _ in sizes}):
            own = {group: size for (name, group), size in sizes.items() if name == domain}
            stay = fill_budget(own, budget=settings.max_domain_bytes, seed=settings.seed)
            kept = {key: s for key, s in kept.items() if key[0] != domain or key[1] in stay}
    if settings.max_bytes is not None:
        joined = {f"{domain}\n{group}": size for (domain, group), size in kept.items()}
        stay = fill_budget(joined, budget=settings.max_bytes, seed=settings.seed)
        kept = {key: s for key, s in kept.items() if "\n".join(key) in stay}
    if len(kept) == len(sizes):
        return frame
    gone = {key: "over_budget" for key in sizes if key not in kept}
    frame = _join_groups(frame, gone, column="late")
    return frame.with_column("reason", coalesce(col("reason"), col("late"))).exclude("late")


def assign_splits(frame: daft.DataFrame, settings: Settings) -> daft.DataFrame:
    """`part` and `split` of every document, by group within its domain."""
    sizes = _group_sizes(frame)
    parts: dict[tuple[str, str], str] = {}
    for domain in sorted({domain for domain, _ in sizes}):
        own = {group: size for (name, group), size in sizes.items() if name == domain}
        drawn = assign_parts(
            own,
            heldout=settings.split.heldout,
            text_only=settings.split.text_only,
            seed=settings.seed,
        )
        parts |= {(domain, group): part for group, part in drawn.items()}
    frame = _join_groups(frame, parts, column="part")
    split = when(col("part") == NOWHERE, daft.lit("heldout")).otherwise(daft.lit("train"))
    return frame.with_column("split", split)


def _drop(frame: daft.DataFrame, twins: Mapping[int, int], *, reason: str) -> daft.DataFrame:
    """`reason` for the ranks in `twins`, and in `twin` the rank of what each repeats."""
    if not twins:
        return frame
    ranks = pa.array(list(twins), pa.int64())
    others = pa.array(list(twins.values()), pa.int64())
    late = daft.from_arrow(pa.table({"rank": ranks, "late": others}))
    frame = frame.join(late, on="rank", how="left")
    named = when(col("late").not_null(), daft.lit(reason)).otherwise(col("reason"))
    frame = frame.with_columns({"reason": named, "twin": coalesce(col("late"), col("twin"))})
    return frame.exclude("late")


def _group_sizes(frame: daft.DataFrame) -> dict[tuple[str, str], int]:
    """Bytes of live text by (domain, group), in sorted order."""
    live = _live(frame).with_column("size", col("text").length_bytes())
    rows = live.groupby("domain", "group").agg(col("size").sum()).to_pydict()
    keys = zip(rows["domain"], rows["group"], strict=True)
    return dict(sorted(zip(keys, rows["size"], strict=True)))


def _join_groups(
    frame: daft.DataFrame, values: Mapping[tuple[str, str], str], *, column: str
) -> daft.DataFrame:
    table = {
        "domain": pa.array([domain for domain, _ in values], pa.large_string()),
        "group": pa.array([group for _, group in values], pa.large_string()),
        column: pa.array(list(values.values()), pa.large_string()),
    }
    return frame.join(daft.from_arrow(pa.table(table)), on=["domain", "group"], how="left")


STEPS: tuple[tuple[str, Step], ...] = (
    ("normalise", clean_text),
    ("rules", apply_rules),
    ("exact_duplicates", drop_exact),
    ("near_duplicates", drop_near),
    ("redact", redact_text),
    ("divide_small_domains", divide_small_domains),
    ("budget", apply_budget),
    ("split", assign_splits),
)
