"""The same prompts answered after every stage, side by side."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rung.evals.ladder import Ladder

QUESTIONS_SHOWN = 12


@dataclass(frozen=True)
class Sample:
    """What one model wrote. note: how it was graded, or that it did not stop."""

    model: str
    text: str
    note: str


@dataclass(frozen=True)
class SampleRow:
    """One prompt and what every model made of it. truth: the right answer, where one is known."""

    prompt: str
    label: str
    truth: str
    samples: list[Sample]


def fixed_samples(named: Sequence[tuple[str, Mapping[str, Any]]], part: str) -> list[SampleRow]:
    """part: continuations or answers; a row for each prompt, in the order of the first model."""
    rows: dict[str, list[Sample]] = {}
    for name, result in named:
        for sample in result.get("samples", {}).get(part, ()):
            note = "" if sample["stopped"] else "did not stop"
            rows.setdefault(sample["prompt"], []).append(Sample(name, sample["text"], note))
    return [SampleRow(prompt, "", "", samples) for prompt, samples in rows.items()]


def heldout_samples(ladder: Ladder) -> list[SampleRow]:
    """The first held-out questions of each kind that every model was asked, with their grades.

    First by id: chosen before any model was seen, so not the best or the worst ones.
    """
    found = [(ladder.name(m.id), e) for m in ladder.models if (e := ladder.evaluation(m))]
    asked = [(name, {item["id"]: item for item in e.answers}) for name, e in found if e.answers]
    if not asked:
        return []
    shared = sorted(set.intersection(*(set(items) for _, items in asked)))
    first: dict[tuple[str, str], list[str]] = {}
    for key in shared:
        item = asked[0][1][key]
        first.setdefault((item["format"], item["split_group"]), []).append(key)
    per_cell = max(1, QUESTIONS_SHOWN // max(1, len(first)))
    rows = _rows_by_id(ladder, [e.result["instruct"]["dataset"] for _, e in found if e.answers])
    return [
        _row(rows.get(key), cell, key, [(name, items[key]) for name, items in asked])
        for cell in sorted(first)
        for key in first[cell][:per_cell]
    ]


def _rows_by_id(ladder: Ladder, datasets: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Held-out instruction rows of the data sets that are part of the ladder."""
    rows: dict[str, Mapping[str, Any]] = {}
    for id in dict.fromkeys(datasets):
        dataset = ladder.by_id.get(id)
        if dataset is not None:
            text = dataset.file("heldout.jsonl").read_text(encoding="utf-8")
            rows |= {row["id"]: row for row in map(json.loads, text.splitlines())}
    return rows


def _row(
    row: Mapping[str, Any] | None,
    cell: tuple[str, str],
    key: str,
    items: Sequence[tuple[str, Mapping[str, Any]]],
) -> SampleRow:
    prompt, truth = key, ""
    if row is not None:
        prompt = row["messages"][-2 if row["messages"][-1]["role"] == "assistant" else -1][
            "content"
        ]
        truth = str((row.get("truth") or {}).get("answer", row["messages"][-1]["content"]))
    samples = [
        Sample(
            name,
            item["answer"],
            f"utility {item['utility']:.2f}" + ("" if item["stopped"] else ", did not stop"),
        )
        for name, item in items
    ]
    return SampleRow(prompt, f"{cell[0]}, {cell[1].replace('_', ' ')}", truth, samples)
