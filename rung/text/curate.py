"""Stage curate: raw documents -> a clean, deduplicated, split corpus."""

import json
import time
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pydantic

from rung.config import Config as BaseConfig
from rung.errors import DataError
from rung.store.context import Notes, StageContext
from rung.text.dedup import Dedup
from rung.text.engine import build_frame
from rung.text.files import Files, files_fingerprint, read_files
from rung.text.installed import Installed, installed_fingerprint, read_installed
from rung.text.record import Document
from rung.text.rules import Rules
from rung.text.steps import STEPS, Settings, Split
from rung.text.summary import summarise

COLUMNS = ("id", "text", "domain", "split", "part", "group", "meta")
ROW_GROUP = 5_000  # documents; fixed, so that equal corpora have equal bytes


class Source(Files):
    """Where text comes from: exactly one of `installed`, `folder` and `files`."""

    installed: Installed | None = pydantic.Field(
        None, description="documentation of this Python installation"
    )

    @pydantic.model_validator(mode="after")
    def _check_one(self) -> "Source":
        given = [n for n in ("installed", "folder", "files") if getattr(self, n) not in (None, ())]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of installed, folder, files; given: {', '.join(given) or 'none'}"
            )
        return self


class Config(BaseConfig):
    """What to read, what to drop, what to hold out."""

    source: Source = pydantic.Field(
        Source(installed=Installed()), description="what to read (see Source)"
    )
    rules: Rules = pydantic.Field(Rules(), description="limits of the named reasons to drop")
    dedup: Dedup = pydantic.Field(Dedup(), description="exact and near duplicates")
    pii: bool = pydantic.Field(True, description="replace personal data and keys by placeholders")
    split: Split = pydantic.Field(Split(), description="shares that are held out")
    max_bytes: int | None = pydantic.Field(
        None, gt=0, description="bytes of text to keep at most; whole groups are drawn by seed"
    )
    max_domain_bytes: int | None = pydantic.Field(
        None, gt=0, description="the same for each domain, before max_bytes"
    )
    seed: int = pydantic.Field(0, description="of every draw")


def fingerprint(config: Config) -> object:
    """What the source is now; part of the recipe key, since a source is no artefact."""
    if config.source.installed is not None:
        return installed_fingerprint(config.source.installed)
    return files_fingerprint(config.source)


def run(context: StageContext, config: Config) -> Notes:
    """Read, clean, drop, redact, split; write documents.parquet and report.json."""
    start = time.monotonic()
    context.progress.start("read", unit="files")
    documents, read = _read(config, context.progress.update)
    context.progress.finish()
    seconds = {"read": time.monotonic() - start}
    context.progress.start("curate", total=len(STEPS) + 1, unit="steps")
    frame = build_frame(documents, [_meta(document) for document in documents])
    settings = Settings(
        rules=config.rules,
        dedup=config.dedup,
        pii=config.pii,
        split=config.split,
        max_bytes=config.max_bytes,
        max_domain_bytes=config.max_domain_bytes,
        seed=config.seed,
    )
    for index, (name, step) in enumerate(STEPS):
        start = time.monotonic()
        frame = step(frame, settings).collect()
        seconds[name] = time.monotonic() - start
        context.progress.update(index + 1, step=name)
    table = frame.sort("rank").to_arrow()
    report = summarise(table) | {"read": read}
    kept = table.filter(pc.is_null(table.column("reason"))).select(COLUMNS)
    _check_kept(kept, report)
    context.out.mkdir(parents=True, exist_ok=True)
    _write(kept, report, context)
    context.progress.finish()
    for line in _lines(report):
        context.progress.say(line)
    counts = {
        key: report[key] for key in ("documents", "bytes", "dropped", "redactions", "domains")
    }
    return {"counts": counts | {"read": read}, "seconds": seconds, "figures": _figures(report)}


def _meta(document: Document) -> str:
    return json.dumps(document.meta, sort_keys=True)


def _read(
    config: Config, saw: Callable[[int], None]
) -> tuple[Sequence[Document], dict[str, object]]:
    """Documents, and what was left out on the way: counts with up to three names."""
    encodings: dict[str, int] = {}
    if config.source.installed is not None:
        documents, skipped = read_installed(config.source.installed, saw=saw)
    else:
        documents, skipped, encodings = read_files(config.source)
    if not documents:
        why = ", ".join(f"{reason}: {len(names)}" for reason, names in skipped.items()) or "empty"
        raise DataError(f"the source holds no document ({why}); name other files or packages")
    left_out = {
        reason: {"count": len(names), "examples": sorted(names)[:3]}
        for reason, names in sorted(skipped.items())
    }
    return documents, {"documents": len(documents), "skipped": left_out, "encodings": encodings}


def _check_kept(kept: pa.Table, report: dict) -> None:
    if len(kept):
        return
    why = ", ".join(f"{reason} {info['count']}" for reason, info in report["dropped"].items())
    raise DataError(
        f"no document is left of {report['documents_read']} ({why}); "
        "loosen the limits under `rules`, raise max_bytes, or give more text"
    )


def _write(kept: pa.Table, report: dict, context: StageContext) -> None:
    pq.write_table(
        kept, context.out / "documents.parquet", compression="zstd", row_group_size=ROW_GROUP
    )
    text = json.dumps(report, indent=2, sort_keys=True, ensure_ascii=False)
    (context.out / "report.json").write_text(text + "\n", encoding="utf-8")


def _figures(report: dict) -> dict[str, float]:
    """The few numbers of the stage table."""
    heldout = sum(parts["heldout"]["bytes"] for parts in report["domains"].values())
    return {
        "documents": report["documents"],
        "megabytes": report["bytes"] / 1e6,
        "heldout_megabytes": heldout / 1e6,
        "dropped": sum(info["count"] for info in report["dropped"].values()),
        "redactions": sum(info["count"] for info in report["redactions"].values()),
    }


def _lines(report: dict) -> list[str]:
    lines = [f"kept {report['documents']:,} documents, {report['bytes'] / 1e6:.2f} MB"]
    dropped = [f"{reason} {info['count']:,}" for reason, info in report["dropped"].items()]
    lines += [f"dropped: {', '.join(dropped)}"] if dropped else []
    for reason, info in report["read"]["skipped"].items():
        lines.append(f"not read, {reason}: {info['count']} ({', '.join(info['examples'])})")
    redacted = [f"{kind} {info['count']:,}" for kind, info in report["redactions"].items()]
    lines += [f"redacted: {', '.join(redacted)}"] if redacted else []
    empty = [domain for domain, parts in report["domains"].items() if not parts["heldout"]["bytes"]]
    if empty:
        lines.append(f"nothing is held out of: {', '.join(empty)} (a single document)")
    return lines
