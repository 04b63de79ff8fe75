"""The counts of a curated table: what was dropped and why, what was redacted, what is where."""

import json
from collections import Counter
from typing import Any

import pyarrow as pa

MAX_EXAMPLES = 3
MAX_EXAMPLE_CHARS = 200


def summarise(table: pa.Table) -> dict[str, Any]:
    """Counts of all documents of the steps' table, in rank order.

    {"documents_read": 3, "documents": 2, "bytes": 950, "dropped": {"too_short": {"count": 1,
     "bytes": 12, "examples": [{"id": "a.txt", "text": "Hi."}]}}, "redactions": {"email":
     {"count": 2, "documents": 1}}, "domains": {"notes": {"instruct": {"documents": 1, "bytes":
     800, "groups": 1}, "heldout": {...}, ...}}}
    """
    rows = table.select(
        ["id", "text", "domain", "group", "reason", "twin", "redactions", "part", "split"]
    ).to_pylist()
    kept = [row for row in rows if row["reason"] is None]
    return {
        "documents_read": len(rows),
        "documents": len(kept),
        "bytes": sum(_size(row) for row in kept),
        "dropped": _dropped(
            rows, ids=dict(zip(_ranks(table), (r["id"] for r in rows), strict=True))
        ),
        "redactions": _redactions(kept),
        "domains": _domains(kept),
    }


def _ranks(table: pa.Table) -> list[int]:
    return table.column("rank").to_pylist()


def _size(row: dict) -> int:
    return len(row["text"].encode())


def _dropped(rows: list[dict], *, ids: dict[int, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for row in rows:
        if row["reason"] is None:
            continue
        info = found.setdefault(row["reason"], {"count": 0, "bytes": 0, "examples": []})
        info["count"] += 1
        info["bytes"] += _size(row)
        if len(info["examples"]) < MAX_EXAMPLES:
            example = {"id": row["id"], "text": row["text"][:MAX_EXAMPLE_CHARS]}
            if row["twin"] is not None:
                example["same_as"] = ids[row["twin"]]
            info["examples"].append(example)
    return dict(sorted(found.items()))


def _redactions(kept: list[dict]) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    documents: Counter[str] = Counter()
    for row in kept:
        if row["redactions"]:
            found = json.loads(row["redactions"])
            counts.update(found)
            documents.update(found.keys())
    return {kind: {"count": counts[kind], "documents": documents[kind]} for kind in sorted(counts)}


def _domains(kept: list[dict]) -> dict[str, Any]:
    """domain -> part or split -> documents, bytes, groups."""
    found: dict[str, Any] = {}
    groups: dict[tuple[str, str], set[str]] = {}
    names = ("instruct", "text_only", "nowhere", "train", "heldout")
    for row in kept:
        domain = found.setdefault(
            row["domain"], {name: {"documents": 0, "bytes": 0, "groups": 0} for name in names}
        )
        for name in (row["part"], row["split"]):
            domain[name]["documents"] += 1
            domain[name]["bytes"] += _size(row)
            groups.setdefault((row["domain"], name), set()).add(row["group"])
    for (domain_name, name), members in groups.items():
        found[domain_name][name]["groups"] = len(members)
    return dict(sorted(found.items()))
