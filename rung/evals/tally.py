"""From graded items to figures with intervals, of one model or of two on the same items."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rung.evals.stats import (
    Estimate,
    bootstrap_mean,
    bootstrap_ratio,
    mcnemar,
    paired_difference,
    wilson,
    win_rate,
)

Item = Mapping[str, Any]
"""A graded answer, see rung.evals.answers.grade."""

CLOSED_BOOK = ("explain", "module", "signature")
"""Formats whose answer must come from the weights: nothing in the prompt contains it."""


def is_made_up(item: Item) -> bool:
    """Asked about a function that does not exist (an off-topic question is not one)."""
    return bool(item["split_group"] == "made_up")


def is_real(item: Item) -> bool:
    return bool(item["exists"])


def is_own(item: Item) -> bool:
    """Of the user's own files: its format is a name of theirs, whatever word it is."""
    return bool(item["split_group"] == "files")


def rate(items: Sequence[Item], key: str) -> dict[str, float | int]:
    """Share of items with a true `key`, with Wilson's interval."""
    return wilson(sum(bool(item[key]) for item in items), len(items)).to_json()


def mean(items: Sequence[Item], key: str, *, seed: int) -> dict[str, float | int]:
    """Mean of `key`, bootstrapped over the functions asked about."""
    values = [float(item[key]) for item in items]
    return bootstrap_mean(values, clusters=names(items), seed=seed).to_json()


def reference_bpb(items: Sequence[Item], *, seed: int) -> dict[str, float | int] | None:
    """Bits per byte of the reference answers, given their questions; None where there are none."""
    known = [item for item in items if item.get("reference_bits") is not None]
    if not known:
        return None
    bits = [float(item["reference_bits"]) for item in known]
    sizes = [float(item["reference_bytes"]) for item in known]
    return bootstrap_ratio(bits, sizes, clusters=names(known), seed=seed).to_json()


def names(items: Sequence[Item]) -> list[str]:
    """The cluster of each item: several questions about one function are not independent."""
    return [str(item["name"]) for item in items]


def tally_cells(items: Sequence[Item], *, seed: int) -> list[dict[str, Any]]:
    """One row of figures for each (format, split_group), sorted."""
    cells: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        cells.setdefault((item["format"], item["split_group"]), []).append(item)
    return [
        {
            "format": key[0],
            "split_group": key[1],
            "n": len(cell),
            "exact": rate(cell, "exact"),
            "rouge_l": mean(cell, "rouge_l", seed=seed),
            "utility": mean(cell, "utility", seed=seed),
            "stop_rate": rate(cell, "stopped"),
            "admission_rate": rate(cell, "admits"),
            "reference_bpb": reference_bpb(cell, seed=seed),
        }
        for key, cell in sorted(cells.items())
    ]


def tally_totals(items: Sequence[Item], *, seed: int) -> dict[str, Any]:
    """Figures over all items; one about a kind of question is left out where nobody asked it.

    false_claim_rate: answers about made-up functions that do not say so, also by the kind of name
    (false_claim_rate/coined, false_claim_rate/recombined). refusal_rate_on_real:
    answers that deny or refuse a function that exists. passage_rouge_l and closed_book_rouge_l:
    the same measure with and without the documentation in the prompt. reference_bpb: bits per byte
    of the true answers. exact/chats, rouge_l/chats: of one format of the user's own files, where
    they have several.
    """
    made_up = [item for item in items if is_made_up(item)]
    real = [item for item in items if is_real(item)]
    own = [item for item in items if is_own(item)]
    passage = [item for item in items if item["format"] == "passage" and not is_own(item)]
    closed = [
        item
        for item in items
        if item["format"] in CLOSED_BOOK and is_real(item) and not is_own(item)
    ]
    figures: dict[str, Any] = {
        "n": len(items),
        "stop_rate": rate(items, "stopped"),
        "utility": mean(items, "utility", seed=seed),
        "rouge_l": mean(items, "rouge_l", seed=seed),
        "exact": rate(items, "exact"),
        "answer_tokens": mean(items, "tokens", seed=seed),
    }
    if made_up:
        figures["false_claim_rate"] = _claims(made_up)
        for kind in sorted({str(item["made_up"]) for item in made_up if item.get("made_up")}):
            some = [item for item in made_up if item.get("made_up") == kind]
            figures[f"false_claim_rate/{kind}"] = _claims(some)
    if real:
        figures["refusal_rate_on_real"] = rate(real, "admits")
        figures["utility_on_real"] = mean(real, "utility", seed=seed)
    if passage:
        figures["passage_rouge_l"] = mean(passage, "rouge_l", seed=seed)
    if closed:
        figures["closed_book_rouge_l"] = mean(closed, "rouge_l", seed=seed)
    if bpb := reference_bpb(items, seed=seed):
        figures["reference_bpb"] = bpb
    formats = sorted({str(item["format"]) for item in own})
    for name in formats if len(formats) > 1 else ():
        some = [item for item in own if item["format"] == name]
        figures[f"exact/{name}"] = rate(some, "exact")
        figures[f"rouge_l/{name}"] = mean(some, "rouge_l", seed=seed)
    return figures


def _claims(made_up: Sequence[Item]) -> dict[str, float | int]:
    return wilson(sum(not item["admits"] for item in made_up), len(made_up)).to_json()


def pair_items(after: Sequence[Item], before: Sequence[Item]) -> list[tuple[Item, Item]]:
    """(after, before) of the same question, sorted by id; questions only one was asked drop out."""
    mine = {str(item["id"]): item for item in after}
    theirs = {str(item["id"]): item for item in before}
    return [(mine[key], theirs[key]) for key in sorted(mine.keys() & theirs.keys())]


def compare(after: Sequence[Item], before: Sequence[Item], *, seed: int) -> dict[str, Any]:
    """How `after` does against `before` on the questions both answered; {} when there are none.

    win_rate: on noise-free utility, ties half. differences: after - before, paired by question.
    """
    pairs = pair_items(after, before)
    if not pairs:
        return {}
    everything = _difference(pairs, lambda item: float(item["utility"]), seed=seed)
    wins = win_rate(
        [a["utility"] for a, _ in pairs],
        [b["utility"] for _, b in pairs],
        clusters=names([a for a, _ in pairs]),
        seed=seed,
    )
    result: dict[str, Any] = {
        "n": len(pairs),
        "win_rate": wins.to_json(),
        "utility_difference": everything.to_json(),
        "exact_p_value": round(
            mcnemar([bool(a["exact"]) for a, _ in pairs], [bool(b["exact"]) for _, b in pairs]), 6
        ),
        "cells": _compare_cells(pairs, seed=seed),
    }
    for key, chosen, value in (
        ("false_claim", is_made_up, lambda item: float(not item["admits"])),
        ("refusal_on_real", is_real, lambda item: float(item["admits"])),
    ):
        some = [pair for pair in pairs if chosen(pair[0])]
        if some:
            result[f"{key}_difference"] = _difference(some, value, seed=seed).to_json()
            result[f"{key}_rate_before"] = sum(value(b) for _, b in some) / len(some)
            result[f"{key}_rate_after"] = sum(value(a) for a, _ in some) / len(some)
    return result


def _compare_cells(pairs: Sequence[tuple[Item, Item]], *, seed: int) -> list[dict[str, Any]]:
    cells: dict[tuple[str, str], list[tuple[Item, Item]]] = {}
    for after, before in pairs:
        cells.setdefault((after["format"], after["split_group"]), []).append((after, before))
    return [
        {
            "format": key[0],
            "split_group": key[1],
            "rouge_l": _difference(cell, lambda i: float(i["rouge_l"]), seed=seed).to_json(),
            "utility": _difference(cell, lambda i: float(i["utility"]), seed=seed).to_json(),
        }
        for key, cell in sorted(cells.items())
    ]


def _difference(
    pairs: Sequence[tuple[Item, Item]], value: Callable[[Item], float], *, seed: int
) -> Estimate:
    after, before = [value(a) for a, _ in pairs], [value(b) for _, b in pairs]
    return paired_difference(after, before, clusters=names([a for a, _ in pairs]), seed=seed)
