"""The n-gram model against a slow one from the textbook, and the laws of probability."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from rung.evals.fivegram import _discounts, train_ngram

BOS = 0
VOCAB = 7


def toy_documents(seed: int, num: int = 12, length: int = 40) -> list[np.ndarray]:
    """Documents in which every token mostly follows from the one before it."""
    generator = np.random.default_rng(seed)
    documents = []
    for _ in range(num):
        ids = [int(generator.integers(1, VOCAB))]
        for _ in range(int(generator.integers(1, length))):
            jump = generator.choice([1, 2, 3, 5], p=[0.6, 0.2, 0.15, 0.05])
            ids.append(1 + (ids[-1] + int(jump)) % (VOCAB - 1))
        documents.append(np.array(ids, dtype=np.int32))
    return documents


class SlowKneserNey:
    """Modified Kneser-Ney straight from the definition, on dictionaries of tuples."""

    def __init__(self, documents: list[np.ndarray], order: int) -> None:
        self.order = order
        raw: Counter[tuple[int, ...]] = Counter()
        for ids in documents:
            padded = [BOS] * (order - 1) + [int(i) for i in ids]
            for end in range(order, len(padded) + 1):
                raw[tuple(padded[end - order : end])] += 1
        self.counts: dict[int, Counter[tuple[int, ...]]] = {order: raw}
        for k in range(order - 1, 0, -1):
            left: dict[tuple[int, ...], set[int]] = defaultdict(set)
            for gram in self.counts[k + 1]:
                left[gram[1:]].add(gram[0])
            self.counts[k] = Counter({gram: len(who) for gram, who in left.items()})
        self.take = {k: _discounts(np.array(list(c.values()))) for k, c in self.counts.items()}

    def probability(self, context: tuple[int, ...], token: int) -> float:
        if not context:
            below, k = 1 / VOCAB, 1
        else:
            below, k = self.probability(context[1:], token), len(context) + 1
        follow = {g: c for g, c in self.counts[k].items() if g[:-1] == context}
        if not follow:
            return below
        total = sum(follow.values())
        taken = sum(self.take[k][min(c, 3)] for c in follow.values())
        count = follow.get((*context, token), 0)
        kept = count - self.take[k][min(count, 3)] if count else 0.0
        return kept / total + taken / total * below


@pytest.mark.parametrize("order", [2, 3, 5])
def test_equals_the_slow_reference(order: int) -> None:
    documents = toy_documents(0)
    fast = train_ngram(documents, vocab_size=VOCAB, bos=BOS, order=order)
    slow = SlowKneserNey(documents, order)
    for ids in toy_documents(1, num=4) + documents[:2]:
        padded = [BOS] * (order - 1) + [int(i) for i in ids]
        expected = -sum(
            math.log2(slow.probability(tuple(padded[end - order : end - 1]), padded[end - 1]))
            for end in range(order, len(padded) + 1)
        )
        assert fast.document_bits([ids])[0] == pytest.approx(expected, rel=1e-12)


def test_probabilities_sum_to_one_in_any_context() -> None:
    model = train_ngram(toy_documents(2), vocab_size=VOCAB, bos=BOS)
    generator = np.random.default_rng(3)
    for context in [np.zeros(4, dtype=np.int64), *generator.integers(0, VOCAB, size=(60, 4))]:
        contexts = np.repeat(context[None], VOCAB, axis=0)
        p = model.probabilities(contexts, np.arange(VOCAB))
        assert p.sum() == pytest.approx(1.0, abs=1e-12)
        assert (p > 0).all()


def test_discounts_by_hand() -> None:
    # n1..n4 = 6 3 2 1: y = 6 / 12; D1 = 1 - 2*.5*3/6, D2 = 2 - 3*.5*2/3, D3 = 3 - 4*.5*1/2
    counts = np.array([1] * 6 + [2] * 3 + [3] * 2 + [4])
    assert _discounts(counts) == pytest.approx([0, 0.5, 1.0, 2.0])
    assert _discounts(np.array([2, 2])) == pytest.approx([0, 0.5, 0.5, 0.5])


def test_contexts_do_not_cross_documents() -> None:
    # were documents joined, 2 would follow 1; kept apart, what follows 1 is never seen
    joined = train_ngram([np.array([1, 2, 1, 2, 1, 2])], vocab_size=VOCAB, bos=BOS, order=2)
    apart = train_ngram([np.array([i]) for i in [1, 2] * 3], vocab_size=VOCAB, bos=BOS, order=2)
    one, two = np.array([[1]]), np.array([2])
    assert joined.probabilities(one, two)[0] > 0.7
    assert len(apart.levels[1].contexts) == 1  # only the beginning of a document
    assert apart.probabilities(one, two)[0] < 0.5


def test_more_training_text_helps() -> None:
    documents, test = toy_documents(4, num=200), toy_documents(5, num=20)
    few = train_ngram(documents[:5], vocab_size=VOCAB, bos=BOS).document_bits(test).sum()
    many = train_ngram(documents, vocab_size=VOCAB, bos=BOS).document_bits(test).sum()
    uniform = sum(map(len, test)) * math.log2(VOCAB)
    assert many < few < uniform


def test_a_large_vocabulary_does_not_overflow() -> None:
    # 150,000 ** 5 needs 87 bits: keys must stay ranks, not products
    generator = np.random.default_rng(6)
    ids = generator.integers(0, 150_000, size=3000)
    model = train_ngram([ids], vocab_size=150_000, bos=BOS)
    assert model.document_bits([ids[:50]])[0] < model.document_bits([ids[:50][::-1]])[0]


def test_empty_documents_cost_nothing() -> None:
    model = train_ngram(toy_documents(7), vocab_size=VOCAB, bos=BOS)
    bits = model.document_bits([np.array([1, 2]), np.zeros(0, dtype=np.int32), np.array([3])])
    assert bits[1] == 0
    assert bits[[0, 2]].min() > 0
