"""Duplicates: known copies are found, different documents stay; against exact Jaccard."""

import random

import pytest

from rung.text.dedup import Dedup, exact_duplicates, near_duplicates
from rung.text.engine import build_frame
from rung.text.record import Document


def frame_of(texts):
    documents = [Document(str(i), text, "d", str(i), {}) for i, text in enumerate(texts)]
    return build_frame(documents, ["{}"] * len(documents))


def shingles(text, n=5):
    words = text.split()
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def similarity(a, b):
    left, right = shingles(a), shingles(b)
    return len(left & right) / len(left | right)


def make_texts(rng, *, originals, copies, change):
    """Random documents, then copies with a share of the words replaced; copy i is of i."""
    words = [f"w{i}" for i in range(5000)]
    texts = [" ".join(rng.choices(words, k=rng.randint(80, 300))) for _ in range(originals)]
    for i in range(copies):
        changed = [rng.choice(words) if rng.random() < change else w for w in texts[i].split()]
        texts.append(" ".join(changed))
    return texts


def test_exact_ignores_case_and_spacing_only():
    texts = ["A b  c", "x", "a B\nc ", "a b, c", "x"]
    assert exact_duplicates(frame_of(texts)) == {2: 0, 4: 1}


def test_recall_and_precision_on_known_near_copies():
    """1 % of the words changed: expected Jaccard about 0.9, so nearly all must be found."""
    texts = make_texts(random.Random(0), originals=800, copies=400, change=0.01)
    twins = near_duplicates(frame_of(texts), Dedup(), seed=0)
    right = sum(twins.get(800 + i) == i for i in range(400))
    assert right >= 0.97 * 400
    assert all(similarity(texts[rank], texts[first]) > 0.6 for rank, first in twins.items())
    assert not any(rank < 800 for rank in twins)


def test_agrees_with_exact_jaccard_away_from_the_threshold():
    rng = random.Random(1)
    texts = make_texts(rng, originals=60, copies=60, change=0.03)
    texts += make_texts(rng, originals=60, copies=60, change=0.004)
    twins = near_duplicates(frame_of(texts), Dedup(min_similarity=0.75), seed=0)
    pairs = [(i, 60 + i) for i in range(60)] + [(120 + i, 180 + i) for i in range(60)]
    for first, copy in pairs:
        true = similarity(texts[first], texts[copy])
        if abs(true - 0.75) > 0.12:  # three standard deviations of 112 hashes
            assert (copy in twins) == (true > 0.75), true


def test_first_of_a_chain_stays():
    rng = random.Random(2)
    text = make_texts(rng, originals=1, copies=0, change=0)[0]
    texts = ["other words entirely here " * 3, text, text + " tail", text + " end of it"]
    assert near_duplicates(frame_of(texts), Dedup(), seed=0) == {2: 1, 3: 1}


@pytest.mark.parametrize("texts", [[], ["one document of six words here"]])
def test_too_few_documents(texts):
    assert near_duplicates(frame_of(texts), Dedup(), seed=0) == {}


def test_same_result_every_time():
    texts = make_texts(random.Random(3), originals=200, copies=100, change=0.02)
    results = [near_duplicates(frame_of(texts), Dedup(), seed=5) for _ in range(3)]
    assert results[0] == results[1] == results[2]
