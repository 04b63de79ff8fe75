"""Which of several texts a model finds likeliest, and whether it would say a text itself.

The measures are those of lm-evaluation-harness, so that figures can stand side by side: `acc`
takes the choice of the highest log-probability, `acc_norm` that of the highest log-probability per
character; of a text without others, `acc` asks whether each of its tokens was the likeliest.
`benchmarks/harness.py` holds both against each other.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rung.engine.scoring import score
from rung.errors import DataError
from rung.evals.choice_rows import Item
from rung.evals.likelihood import batches
from rung.evals.stats import bootstrap_mean, wilson
from rung.model.attention import to_torch
from rung.model.forward import hidden_states
from rung.model.precision import autocast
from rung.tokens.forest import Tree, group, pack, tree_size
from rung.tokens.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Scores:
    """Of the choices of one item: log-probability (nats) float64 [K], tokens int64 [K], and
    whether every token was the likeliest, bool [K]. cut: tokens taken off a prompt that was too
    long, at its beginning."""

    logps: np.ndarray
    tokens: np.ndarray
    greedy: np.ndarray
    cut: int = 0


def choice_tree(tokenizer: Tokenizer, item: Item, *, context: int) -> tuple[Tree, int]:
    """The prompt with a child for each choice, and how many tokens of the prompt were cut off.

    A blank stands between prompt and choice. The choices begin where the tokens of prompt and
    choice together part from those of the prompt: where it ends, in vocabularies that write a blank
    in front of a word. lm-evaluation-harness counts tokens instead, which is the same there. Where
    a token reaches over the border ("the " is one), counting would read tokens that no text has;
    here that token belongs to the choices, to all of them.
    """
    prompt = item.prompt.rstrip()
    gap = item.prompt[len(prompt) :] or (" " if prompt else "")
    if not prompt:
        gap = ""
    before, *whole = tokenizer.encode_batch([prompt, *(prompt + gap + c for c in item.choices)])
    border = min(_common(before, ids) for ids in whole)
    before, choices = before[:border], [ids[border:] for ids in whole]
    longest = max(len(ids) for ids in choices)
    if not all(len(ids) for ids in choices) or longest >= context:
        raise DataError(
            f"item {item.id}: a choice of {longest} tokens in a context of {context}, where each "
            "needs 1 and one of the context begins the text: shorten it"
        )
    room = context - 1 - longest
    kept = before[max(0, len(before) - room) :]
    ids = np.append(np.int32(tokenizer.bos), kept)
    return group(ids, choices), len(before) - len(kept)


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """Ids that both begin with."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length


def score_items(
    model: Any,
    tokenizer: Tokenizer,
    items: Sequence[Item],
    *,
    context: int,
    dtype: torch.dtype = torch.float32,
    tokens_per_batch: int = 4096,
) -> list[Scores]:
    """The choices of each item after its prompt, which is read once for all of them.

    Every text begins with the tokenizer's bos, as in training. DataError: a choice that fills the
    context.
    """
    found = [choice_tree(tokenizer, item, context=context) for item in items]
    scores: list[Scores] = []
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode(), autocast(dtype, device):
        for part in batches([tree_size(tree) for tree, _ in found], limit=tokens_per_batch):
            several = _score_trees(model, [found[i][0] for i in part], device)
            scores += [
                Scores(*figures, cut=found[i][1]) for i, figures in zip(part, several, strict=True)
            ]
    return scores


def _score_trees(
    model: Any, trees: Sequence[Tree], device: torch.device
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(log-probabilities, tokens, greedy) of the children of each tree."""
    forest = pack(trees)
    packed = to_torch(forest, device)
    rows = hidden_states(model, packed).index_select(0, packed.predictor)
    parts = score(model, rows, forest.target, num_top=1)
    logps = np.concatenate([part.chosen for part in parts]).astype(np.float64)
    likeliest = np.concatenate([part.top_ids[:, 0] for part in parts]) == forest.target
    counts = [
        np.bincount(forest.target_seg, weights=values, minlength=forest.num_segments)
        for values in (logps, np.ones(len(logps)), likeliest)
    ]
    of_children = [values[forest.answers] for values in counts]
    ends = np.cumsum([len(tree) - 1 for tree in trees])[:-1]
    sums, tokens, hits = (np.split(values, ends) for values in of_children)
    return [
        (total, number.astype(np.int64), hit == number)
        for total, number, hit in zip(sums, tokens, hits, strict=True)
    ]


def item_row(task: str, item: Item, scores: Scores) -> dict[str, Any]:
    """What items.jsonl says of an item: log-probabilities in nats, and what is right.

    Example: {"suite": "tasks", "task": "arc", "id": "7", "answer": 1, "acc": true,
    "acc_norm": false, "logps": [-9.1, -8.7], "characters": [4, 11], "cut": 0}
    """
    characters = [len(choice) for choice in item.choices]
    row: dict[str, Any] = {
        "suite": "tasks",
        "task": task,
        "id": item.id,
        "answer": item.answer,
        "logps": [round(float(value), 6) for value in scores.logps],
        "characters": characters,
        "cut": scores.cut,
    }
    if item.is_cloze:
        return row | {"acc": bool(scores.greedy[0])}
    likeliest = int(np.argmax(scores.logps))
    per_character = int(np.argmax(scores.logps / np.array(characters)))
    return row | {"acc": likeliest == item.answer, "acc_norm": per_character == item.answer}


def summarise_task(rows: Sequence[Mapping[str, Any]], *, seed: int) -> dict[str, Any]:
    """Figures of one task from the rows of its items, with 95 % intervals.

    chance: what guessing would reach. perplexity: of a whole answer, exp of the mean of minus its
    log-probability, where there are no choices. cut: items whose prompt was too long.
    """
    figures: dict[str, Any] = {"n": len(rows), "cut": sum(row["cut"] > 0 for row in rows)}
    for measure in ("acc", "acc_norm"):
        if measure in rows[0]:
            right = sum(row[measure] for row in rows)
            figures[measure] = wilson(right, len(rows)).to_json()
    if len(rows[0]["logps"]) > 1:
        return figures | {"chance": round(float(np.mean([1 / len(r["logps"]) for r in rows])), 6)}
    loss = bootstrap_mean([-row["logps"][0] for row in rows], seed=seed)
    edges = {"value": loss.value, "low": loss.low, "high": loss.high}
    return figures | {
        "perplexity": {key: round(math.exp(min(value, 700.0)), 6) for key, value in edges.items()}
        | {"n": loss.n}
    }
