"""Answers of a model to conversations, and what the known truth says of them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rung.engine.generate import generate
from rung.engine.sampling import Sampling
from rung.tasks.grade import is_admission, utility
from rung.tasks.text_metrics import exact_match, rouge_l
from rung.tokens.chat import render
from rung.tokens.tokenizer import Tokenizer

Row = Mapping[str, Any]
"""An instruction row, see docs/design.md."""


@dataclass(frozen=True)
class Answer:
    """What a model said. prompt, ids: int32 tokens; ids end with the stop token when stopped."""

    prompt: np.ndarray
    ids: np.ndarray
    text: str
    stopped: bool


def choose_rows(rows: Sequence[Row], *, per_cell: int, made_up: int, seed: int) -> list[Row]:
    """At most `per_cell` rows of each (format, split_group), by a hash of (seed, id).

    made_up: the limit of a cell about made-up functions, whose rates rest on it alone.
    """

    def order(row: Row) -> str:
        return hashlib.sha256(f"{seed}/{row['id']}".encode()).hexdigest()

    cells: dict[tuple[str, str], list[Row]] = {}
    for row in sorted(rows, key=order):
        cell = cells.setdefault((row["format"], row["split_group"]), [])
        if len(cell) < (made_up if row["split_group"] == "made_up" else per_cell):
            cell.append(row)
    return [row for key in sorted(cells) for row in sorted(cells[key], key=lambda r: r["id"])]


def prompt_ids(tokenizer: Tokenizer, row: Row) -> np.ndarray:
    """Ids of the question: all messages but the reference answer, ready for an answer."""
    messages = row["messages"]
    asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    return render(tokenizer, asked, generation_prompt=True, where=f"row {row['id']}").ids


def split_by_length(
    tokenizer: Tokenizer, rows: Sequence[Row], *, context: int, max_new_tokens: int
) -> tuple[list[Row], list[Row]]:
    """(rows whose prompt leaves room for an answer, rows that are too long to ask)."""
    fits: list[Row] = []
    too_long: list[Row] = []
    for row in rows:
        room = len(prompt_ids(tokenizer, row)) + max_new_tokens <= context
        (fits if room else too_long).append(row)
    return fits, too_long


def answer_rows(
    model: Any,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    sampling: Sampling,
    *,
    dtype: torch.dtype = torch.float32,
) -> list[Answer]:
    """One answer a row. The draw depends on (seed, row id) only: two models get the same dice."""
    prompts = [prompt_ids(tokenizer, row) for row in rows]
    if not prompts:
        return []
    keys = [int(hashlib.sha256(row["id"].encode()).hexdigest()[:8], 16) >> 1 for row in rows]
    completions = generate(model, prompts, sampling, keys=keys, dtype=dtype)
    return [
        Answer(prompt, first.ids, tokenizer.decode(first.ids), first.stopped)
        for prompt, (first, *_) in zip(prompts, completions, strict=True)
    ]


def grade(row: Row, answer: Answer) -> dict[str, Any]:
    """One item: the answer and what the known truth says of it, without noise."""
    truth = row["truth"]
    judged = utility(row, answer.text, stopped=answer.stopped)
    return {
        "suite": "instruct",
        "id": row["id"],
        "format": row["format"],
        "split_group": row["split_group"],
        "name": truth["name"] or row["id"],  # users' own rows are about no function
        "exists": bool(truth["exists"]),
        "made_up": truth.get("made_up"),  # how, of a name that does not exist
        "answer": answer.text,
        "stopped": answer.stopped,
        "tokens": len(answer.ids),
        "exact": exact_match(answer.text, truth["answer"]),
        "rouge_l": round(rouge_l(answer.text, truth["answer"]), 6),
        "admits": is_admission(answer.text),
        "utility": round(judged.value, 6),
        "flags": list(judged.flags),
    }
