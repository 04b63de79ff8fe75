"""An interpolated n-gram model with modified Kneser-Ney smoothing, in sorted arrays.

The yardstick of the base model: counts of the same tokens, no learning. Chen and Goodman (1999),
"An empirical study of smoothing techniques", equations 23-27; lower orders count distinct
left neighbours instead of occurrences (Kneser and Ney 1995).

A context of k tokens is a number: (number of its k - 1 latest tokens) * V + its earliest token,
replaced by its rank among those seen. So any vocabulary and order fits 64 bits, and a query walks
one `searchsorted` an order. Simple and quick enough: about 2 s a million tokens at order 5.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class _Level:
    """One order k: contexts of k - 1 tokens and what follows them.

    contexts: sorted keys of contexts of this length (empty for k = 1). grams: sorted keys
    (context number * V + token). counts: per gram. total, mass: per context, the sum of its
    counts and the probability left for the order below. discounts: [4], by count 0, 1, 2, 3+.
    """

    contexts: np.ndarray
    grams: np.ndarray
    counts: np.ndarray
    total: np.ndarray
    mass: np.ndarray
    discounts: np.ndarray


class NgramModel:
    """P(token | up to order - 1 tokens before it); sums to 1 over the vocabulary in any context."""

    def __init__(self, levels: Sequence[_Level], *, vocab_size: int, bos: int) -> None:
        self.levels = list(levels)
        self.vocab_size = vocab_size
        self.bos = bos

    @property
    def order(self) -> int:
        return len(self.levels)

    def probabilities(self, contexts: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """float64 [n]. contexts: int64 [n, order - 1], nearest token first; tokens: int64 [n]."""
        result = np.full(len(tokens), 1.0 / self.vocab_size)
        number = np.zeros(len(tokens), dtype=np.int64)  # of the context; -1 once never seen
        for k, level in enumerate(self.levels):
            if k:
                number = _extend(level.contexts, number, contexts[:, k - 1], self.vocab_size)
            seen = np.flatnonzero(number >= 0)
            at = number[seen]
            keys = at * self.vocab_size + tokens[seen]
            rank = _rank(level.grams, keys)
            count = np.where(rank >= 0, level.counts[rank], 0)
            kept = count - level.discounts[np.minimum(count, 3)]
            result[seen] = kept / level.total[at] + level.mass[at] * result[seen]
        return result

    def document_bits(self, documents: Sequence[np.ndarray]) -> np.ndarray:
        """Bits for each document of token ids (not begun by bos), float64."""
        tokens, contexts, owner = _events(documents, order=self.order, bos=self.bos)
        bits = -np.log2(self.probabilities(contexts, tokens))
        return np.bincount(owner, weights=bits, minlength=len(documents))


def train_ngram(
    documents: Sequence[np.ndarray], *, vocab_size: int, bos: int, order: int = 5
) -> NgramModel:
    """Counts `documents` (token ids each, not begun by bos); contexts never cross documents."""
    tokens, contexts, _ = _events(documents, order=order, bos=bos)
    assert len(tokens), "an n-gram model needs tokens"
    number = np.zeros(len(tokens), dtype=np.int64)
    num_contexts = 1
    found = np.zeros(0, dtype=np.int64)
    tables: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]] = []
    for k in range(order):
        if k:
            found, number = np.unique(number * vocab_size + contexts[:, k - 1], return_inverse=True)
            num_contexts = len(found)
        grams, first, gram_of, counts = np.unique(
            number * vocab_size + tokens,
            return_index=True,
            return_inverse=True,
            return_counts=True,
        )
        tables.append((found, grams, first, gram_of, counts, num_contexts))
    levels = []
    for k, (found, grams, _, gram_of, counts, num_contexts) in enumerate(tables):
        if k + 1 < order:  # distinct left neighbours: the longer grams that end in each gram
            counts = np.bincount(gram_of[tables[k + 1][2]], minlength=len(grams))
        levels.append(_level(found, grams, counts, num_contexts, vocab_size))
    return NgramModel(levels, vocab_size=vocab_size, bos=bos)


def _level(
    found: np.ndarray, grams: np.ndarray, counts: np.ndarray, num_contexts: int, vocab_size: int
) -> _Level:
    discounts = _discounts(counts)
    context_of = grams // vocab_size
    total = np.bincount(context_of, weights=counts, minlength=num_contexts)
    taken = discounts[np.minimum(counts, 3)]
    mass = np.bincount(context_of, weights=taken, minlength=num_contexts) / total
    return _Level(found, grams, counts, total, mass, discounts)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """What is taken from a count of 0, 1, 2 and 3 or more (equation 26).

    The formula is made for natural text; on tiny or regular counts it can be undefined or leave
    (0, count): the one-parameter discount, and last a half, stand in there.
    """
    n1, n2, n3, n4 = (int((counts == n).sum()) for n in (1, 2, 3, 4))
    if n1 and n2 and n3:
        y = n1 / (n1 + 2 * n2)
        three = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
        if all(0 < d < n for d, n in zip(three, (1, 2, 3), strict=True)):
            return np.array([0.0, *three])
    single = n1 / (n1 + 2 * n2) if n1 and n2 else 0.5
    return np.array([0.0, single, single, single])


def _events(
    documents: Sequence[np.ndarray], *, order: int, bos: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(token [n], contexts [n, order - 1] nearest first, document [n]) of every token."""
    pad = np.full(order - 1, bos, dtype=np.int64)
    flat = np.concatenate([part for ids in documents for part in (pad, ids)] or [pad])
    flat = flat.astype(np.int64)
    lengths = np.array([len(ids) for ids in documents], dtype=np.int64)
    owner = np.repeat(np.arange(len(documents)), lengths)
    at = np.arange(lengths.sum()) + (owner + 1) * (order - 1)
    contexts = np.stack([flat[at - k] for k in range(1, order)], axis=1)
    return flat[at], contexts, owner


def _extend(
    contexts: np.ndarray, number: np.ndarray, earlier: np.ndarray, vocab_size: int
) -> np.ndarray:
    """Numbers of contexts made one token longer; -1 where the longer one was never seen."""
    rank = _rank(contexts, number * vocab_size + earlier)
    return np.where(number >= 0, rank, -1)


def _rank(table: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Index of each key in the sorted table, -1 where absent."""
    at = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return np.where(table[at] == keys, at, -1)
