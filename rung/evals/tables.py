"""Tables of the report as plain text cells; the template escapes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rung.evals.numerals import estimate, number, signed

MAX_ROWS = 40
"""Rows of one table of counts: a folder of a thousand domains must not fill the page."""


@dataclass(frozen=True)
class Table:
    """title, head, rows of cells. empty: what to say when there are no rows."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""
    empty: str = ""


def drop_table(report: Mapping[str, Any]) -> Table | None:
    """Why documents were dropped, with examples; None where the report has no reasons."""
    reasons = report.get("dropped")
    if not isinstance(reasons, Mapping) or not reasons:
        return None
    rows = []
    for reason, entry in sorted(reasons.items(), key=lambda pair: (-_count(pair[1]), pair[0])):
        examples = entry.get("examples", ()) if isinstance(entry, Mapping) else ()
        shown = " | ".join(_example(example) for example in list(examples)[:3])
        rows.append([reason.replace("_", " "), number(_count(entry)), shown])
    return Table("Dropped, by reason", ["reason", "count", "examples"], rows[:MAX_ROWS])


def _count(entry: Any) -> int:
    value = entry.get("count", 0) if isinstance(entry, Mapping) else entry
    return int(value) if isinstance(value, (int, float)) else 0


def _example(example: Any) -> str:
    if isinstance(example, Mapping):
        example = example.get("text") or example.get("id") or ""
    text = " ".join(str(example).split())
    return text if len(text) <= 120 else text[:119] + "..."


def tables_of(report: Mapping[str, Any]) -> list[Table]:
    """The other counts of a report.json: loose numbers, then a table for each group of them."""
    loose: list[list[str]] = []
    tables: list[Table] = []
    for key, value in report.items():
        if key in ("dropped", "annotator_config", "settings"):
            continue
        if key == "domains" and isinstance(value, Mapping):
            tables.append(_domain_counts(value))
            continue
        if _is_number(value):
            loose.append([_label(key), _show(value)])
        elif isinstance(value, Mapping) and value:
            tables += _group_tables(_label(key), value)
    head = ["what", "count"]
    return ([Table("Counts", head, loose)] if loose else []) + tables


def _domain_counts(domains: Mapping[str, Any]) -> Table:
    """What a corpus holds of each domain, and how its groups are split."""
    columns = (
        ("train", "documents"),
        ("train", "bytes"),
        ("heldout", "documents"),
        ("heldout", "bytes"),
        ("instruct", "groups"),
        ("text_only", "groups"),
        ("nowhere", "groups"),
    )
    rows = [
        [str(name), *(_show(parts.get(part, {}).get(what)) for part, what in columns)]
        for name, parts in sorted(domains.items())
        if isinstance(parts, Mapping)
    ]
    head = ["domain", *(f"{_label(part)}: {what}" for part, what in columns)]
    note = "groups are modules or files; a group is in one part only"
    return _cut(Table("Domains", head, rows, note=note))


def _group_tables(title: str, group: Mapping[str, Any]) -> list[Table]:
    numbers = {k: v for k, v in group.items() if _is_number(v)}
    inner = {
        k: v
        for k, v in group.items()
        if isinstance(v, Mapping) and v and all(_is_number(x) for x in v.values())
    }
    tables = []
    if numbers:
        rows = [[str(k), _show(v)] for k, v in sorted(numbers.items())]
        tables.append(_cut(Table(title, ["what", "count"], rows)))
    if inner:
        columns = sorted({key for v in inner.values() for key in v})
        rows = [[str(k), *(_show(v.get(c)) for c in columns)] for k, v in sorted(inner.items())]
        tables.append(_cut(Table(title, ["", *map(_label, columns)], rows)))
    return tables


def _cut(table: Table) -> Table:
    if len(table.rows) <= MAX_ROWS:
        return table
    note = f"the first {MAX_ROWS} of {len(table.rows)}; report.json of the artefact has all"
    note = f"{table.note}; {note}" if table.note else note
    return Table(table.title, table.head, table.rows[:MAX_ROWS], note=note)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _show(value: Any) -> str:
    return number(value, digits=3) if _is_number(value) else "-"


def _label(key: Any) -> str:
    return str(key).replace("_", " ")


Named = Sequence[tuple[str, Mapping[str, Any]]]
"""(model name, evaluation.json) in order."""


def domain_table(named: Named, corpus: str, title: str) -> Table | None:
    """Bits per byte of each domain of a corpus after each stage."""
    have = [(n, r["likelihood"][corpus]) for n, r in named if corpus in r.get("likelihood", {})]
    if not have:
        return None
    domains = sorted({domain for _, part in have for domain in part["domains"]})
    rows = [["all", *(estimate(part["total"]) for _, part in have)]]
    rows += [
        [domain, *(estimate(part["domains"].get(domain)) for _, part in have)]
        for domain in domains[:MAX_ROWS]
    ]
    total = have[0][1]["total"]
    note = f"{total['n']} held-out documents, {total['bytes']:,} bytes; 95 % intervals"
    return Table(title, ["domain", *(name for name, _ in have)], rows, note=note)


def format_table(named: Named, *, key: str, title: str, as_percent: bool = False) -> Table | None:
    """One figure for each (format, split group) of each model."""
    have = [(name, _cells(result)) for name, result in named if result.get("instruct")]
    if not have:
        return None
    keys = sorted({cell for _, cells in have for cell in cells})
    rows = []
    for cell in keys:
        found = [cells.get(cell) for _, cells in have]
        n = next(str(c["n"]) for c in found if c)
        shown = [estimate(c.get(key), as_percent=as_percent) if c else "-" for c in found]
        rows.append([cell[0], cell[1].replace("_", " "), n, *shown])
    return Table(title, ["format", "group", "n", *(name for name, _ in have)], rows)


def _cells(result: Mapping[str, Any]) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(c["format"], c["split_group"]): c for c in result["instruct"]["cells"]}


def task_table(named: Named) -> Table | None:
    """Accuracies of each task of choice and of each cloze task."""
    have = [(name, result["tasks"]) for name, result in named if result.get("tasks")]
    if not have:
        return None
    measures = (("acc", "accuracy"), ("acc_norm", "accuracy per character"))
    rows = []
    for task in sorted({task for _, tasks in have for task in tasks}):
        found = [tasks.get(task, {}) for _, tasks in have]
        one = next(figures for figures in found if figures)
        guess = f"{one['chance']:.0%}" if "chance" in one else "-"
        rows += [
            [task, label, str(one["n"]), guess]
            + [estimate(figures.get(key), as_percent=True) for figures in found]
            for key, label in measures
            if key in one
        ]
    heads = ["task", "measure", "n", "by guessing", *(name for name, _ in have)]
    return Table("Tasks of choice", heads, rows, note="95 % intervals")


def difference_table(compared: Sequence[tuple[str, Mapping[str, Any]]]) -> Table | None:
    """Paired difference of utility by format: (name, comparison with the model before)."""
    have = [(n, {(c["format"], c["split_group"]): c for c in v["cells"]}) for n, v in compared if v]
    if not have:
        return None
    keys = sorted({cell for _, cells in have for cell in cells})
    rows = [
        [
            cell[0],
            cell[1].replace("_", " "),
            *(signed(cells[cell]["utility"]) if cell in cells else "-" for _, cells in have),
        ]
        for cell in keys
    ]
    note = "paired by question; * marks an interval that leaves out 0"
    title = "Change of noise-free utility against the model before"
    return Table(title, ["format", "group", *(name for name, _ in have)], rows, note=note)
