"""Judged answers as trees: a prompt with one child per answer, all of a ranking in one forest."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rung.errors import DataError
from rung.feedback.schema import Ranking
from rung.model.attention import TorchForest, to_torch
from rung.tokens.chat import answer_ids, render
from rung.tokens.forest import Tree, group, pack, tree_size
from rung.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class RankedTree:
    """One ranking as tokens. ranks [K]: lower is better, equal is a tie."""

    tree: Tree
    ranks: np.ndarray
    record: Ranking

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each answer [K]."""
        return np.array([len(segment.ids) for segment in self.tree[1:]])


@dataclass(frozen=True, eq=False)
class RankedForest:
    """A microbatch of R rankings with A answers in all. ranks, ranking: int64 [A]; `ranking` is
    the index of the ranking that an answer belongs to."""

    forest: TorchForest
    ranks: Tensor
    ranking: Tensor
    trees: tuple[RankedTree, ...]


def encode_rankings(
    records: Sequence[Ranking], tokenizer: Tokenizer, *, max_tokens: int
) -> tuple[list[RankedTree], int]:
    """(trees, number of rankings dropped because prompt + longest answer exceed max_tokens).

    An answer that never stopped is scored at its last token; one that stopped at its <|end|>.
    """
    trees, dropped = [], 0
    for record in records:
        prompt = render(
            tokenizer, record.prompt, generation_prompt=True, where=f"ranking {record.id}"
        )
        answers = [
            # Nothing said at all is still an answer: it ends at once.
            answer_ids(tokenizer, text, stopped=bool(stopped) or not text)
            for text, stopped in zip(record.answers, record.stopped, strict=True)
        ]
        if len(prompt.ids) + max(len(ids) for ids in answers) > max_tokens:
            dropped += 1
            continue
        trees.append(RankedTree(group(prompt.ids, answers), np.asarray(record.ranks), record))
    if not trees:
        raise DataError(
            f"none of {len(records)} rankings fits in {max_tokens} tokens (prompt + answer); "
            "collect shorter answers, or take a model with a longer context"
        )
    return trees, dropped


def stack_ranks(trees: Sequence[RankedTree], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """(ranks, ranking) of several rankings, int64 [A]: see RankedForest."""
    ranking = np.repeat(np.arange(len(trees)), [len(tree.ranks) for tree in trees])
    ranks = np.concatenate([tree.ranks for tree in trees])
    return torch.from_numpy(ranks).to(device), torch.from_numpy(ranking).to(device)


def pack_ranked(trees: Sequence[RankedTree], device: torch.device | str) -> RankedForest:
    """Several rankings in one forest on a device."""
    forest = to_torch(pack([tree.tree for tree in trees]), device)
    ranks, ranking = stack_ranks(trees, device)
    return RankedForest(forest, ranks, ranking, tuple(trees))


def cut_by_tokens(trees: Sequence[Tree], max_tokens: int) -> list[list[int]]:
    """Indices of `trees` in order, in runs of at most max_tokens (a larger tree is alone)."""
    runs: list[list[int]] = []
    room = 0
    for index, tree in enumerate(trees):
        size = tree_size(tree)
        if not runs or size > room:
            runs.append([])
            room = max_tokens
        runs[-1].append(index)
        room -= size
    return runs


@dataclass(frozen=True)
class EpochOrder:
    """Which samples update `step` sees: a permutation of all of them per epoch, from the seed.

    The last update of an epoch takes what is left, so every sample is seen once an epoch.
    """

    num_samples: int
    per_update: int
    seed: int

    @property
    def updates_per_epoch(self) -> int:
        return math.ceil(self.num_samples / self.per_update)

    def at(self, step: int) -> np.ndarray:
        """Sample indices of update `step`."""
        epoch, place = divmod(step, self.updates_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.num_samples)
        return order[place * self.per_update : (place + 1) * self.per_update]


def microbatches(
    trees: Sequence[RankedTree], *, max_tokens: int, device: torch.device | str
) -> Iterator[RankedForest]:
    """`trees` in order as packed microbatches of at most max_tokens tokens."""
    for run in cut_by_tokens([tree.tree for tree in trees], max_tokens):
        yield pack_ranked([trees[i] for i in run], device)
