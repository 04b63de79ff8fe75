"""Bits per byte of a model on held-out documents: how many bits it needs to write each byte.

The number does not depend on the tokenizer, so it compares models, and models with counts of
n-grams. Every byte is charged once, and so is the end of a whole document.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rung.errors import DataError
from rung.evals.heldout import HeldoutDocument
from rung.evals.stats import bootstrap_ratio
from rung.model.attention import to_torch
from rung.model.forward import target_logps
from rung.model.precision import autocast
from rung.tokens.chat import answer_ids, render
from rung.tokens.forest import Tree, document, pack
from rung.tokens.tokenizer import Tokenizer


def cut_windows(ids: np.ndarray, *, bos: int, context: int) -> list[Tree]:
    """`ids` as trees of at most `context` tokens in which each id is a target exactly once.

    Every window opens with `bos`, as in training. Windows after the first repeat a quarter of the
    context, untrained, so that a token after a cut is not read without what came before it.
    """
    if context < 4:
        raise DataError(f"a context of {context} tokens is too short to measure; it takes 4")
    room = context - 1
    repeat = context // 4
    trees: list[Tree] = []
    done = 0
    while done < len(ids):
        start = max(0, done - repeat) if done else 0
        end = min(len(ids), start + room)
        window = np.concatenate(([bos], ids[start:end])).astype(np.int32)
        weights = np.ones(len(window), dtype=np.float32)
        weights[: 1 + done - start] = 0.0
        trees.append(document(window, weights))
        done = end
    return trees


def document_bits(
    model: Any,
    ids: Sequence[np.ndarray],
    *,
    bos: int,
    context: int,
    dtype: torch.dtype = torch.float32,
    tokens_per_batch: int = 8192,
) -> np.ndarray:
    """Bits that `model` needs for each document, float64 [len(ids)].

    model: a transformers causal LM. ids: tokens of each document, as heldout.document_ids
    gives them.
    """
    owners: list[int] = []
    trees: list[Tree] = []
    for index, tokens in enumerate(ids):
        windows = cut_windows(tokens, bos=bos, context=context)
        trees.extend(windows)
        owners.extend([index] * len(windows))
    return np.bincount(
        np.array(owners, dtype=np.int64),
        weights=_tree_bits(model, trees, dtype=dtype, tokens_per_batch=tokens_per_batch),
        minlength=len(ids),
    )


def answer_bits(
    model: Any,
    tokenizer: Tokenizer,
    rows: Sequence[Mapping[str, Any]],
    *,
    context: int,
    dtype: torch.dtype = torch.float32,
    tokens_per_batch: int = 8192,
) -> list[float | None]:
    """Bits that `model` needs for the reference answer of each instruction row, its end included.

    None for a row without an answer, or one that is longer than the context.
    """
    found: list[float | None] = [None] * len(rows)
    trees: list[Tree] = []
    owners: list[int] = []
    for index, row in enumerate(rows):
        *asked, answer = row["messages"]
        if answer["role"] != "assistant" or not answer["content"].strip():
            continue
        ids = render(tokenizer, asked, generation_prompt=True, where=f"row {row['id']}").ids
        own = answer_ids(tokenizer, answer["content"])
        if len(ids) + len(own) <= context:
            weights = np.repeat(np.array([0, 1], dtype=np.float32), [len(ids), len(own)])
            trees.append(document(np.concatenate([ids, own]), weights))
            owners.append(index)
    bits = _tree_bits(model, trees, dtype=dtype, tokens_per_batch=tokens_per_batch)
    for owner, value in zip(owners, bits.tolist(), strict=True):
        found[owner] = value
    return found


def _tree_bits(
    model: Any, trees: Sequence[Tree], *, dtype: torch.dtype, tokens_per_batch: int
) -> np.ndarray:
    """Bits of the trained tokens of each tree, float64."""
    device = next(model.parameters()).device
    bits = np.zeros(len(trees), dtype=np.float64)
    model.eval()
    with torch.inference_mode(), autocast(dtype, device):
        for part in batches([len(tree[0].ids) for tree in trees], limit=tokens_per_batch):
            forest = pack([trees[i] for i in part])
            logps, _ = target_logps(model, to_torch(forest, device))
            owner = np.array(part)[forest.seg_tree[forest.target_seg]]
            np.add.at(bits, owner, -logps.double().cpu().numpy() / math.log(2))
    return bits


def summarise(
    documents: Sequence[HeldoutDocument], bits: np.ndarray, *, seed: int
) -> dict[str, Any]:
    """Bits per byte in all and per domain, each with a bootstrap interval over documents.

    Example: {"total": {"value": 1.61, "low": 1.55, "high": 1.67, "n": 90, "bytes": 240000},
    "domains": {"numpy": {...}}}
    """
    sizes = np.array([d.num_bytes for d in documents], dtype=np.float64)

    def figure(chosen: np.ndarray) -> dict[str, Any]:
        estimate = bootstrap_ratio(bits[chosen], sizes[chosen], seed=seed)
        return {**estimate.to_json(), "bytes": int(sizes[chosen].sum())}

    names = np.array([d.domain for d in documents])
    return {
        "total": figure(np.arange(len(documents))),
        "domains": {name: figure(np.flatnonzero(names == name)) for name in sorted(set(names))},
    }


def item_rows(
    documents: Sequence[HeldoutDocument], bits: np.ndarray, *, corpus: str
) -> list[dict[str, Any]]:
    """One row a document for paired statistics between evaluations."""
    return [
        {
            "suite": "likelihood",
            "corpus": corpus,
            "domain": d.domain,
            "id": d.id,
            "bits": round(float(b), 4),
            "bytes": d.num_bytes,
        }
        for d, b in zip(documents, bits, strict=True)
    ]


def batches(sizes: Sequence[int], *, limit: int) -> list[list[int]]:
    """Neighbouring indices whose sizes add up to at most `limit`, at least one a batch."""
    parts: list[list[int]] = []
    total = 0
    for index, size in enumerate(sizes):
        if not parts or total + size > limit:
            parts.append([])
            total = 0
        parts[-1].append(index)
        total += size
    return parts
