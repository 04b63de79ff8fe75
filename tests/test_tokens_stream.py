"""The pre-training stream: every token once an epoch, any step on its own, pieces that fit."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rung.errors import DataError
from rung.tokens.bpe import train_bpe, write_tokenizer
from rung.tokens.corpus import CorpusTokens, load_corpus_tokens
from rung.tokens.forest import Tree, pack, tree_size
from rung.tokens.stream import DocumentStream, MixedStream
from rung.tokens.tokenizer import load_tokenizer

BOS = 0


def numbered(lengths: list[int], *, first: int = 1) -> CorpusTokens:
    """A corpus in which every token has an id of its own, so that its place can be traced."""
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    ids = np.arange(first, first + offsets[-1], dtype=np.int32)
    names = [f"d{i}" for i in range(len(lengths))]
    return CorpusTokens(ids, offsets, np.array(lengths), names, ["x"] * len(lengths), BOS)


def trained(trees: list[Tree]) -> list[int]:
    """Targets of a batch in order, as the packed forest has them."""
    return pack(trees).target.tolist()


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(
    lengths=LENGTHS,
    seed=st.integers(0, 5),
    context=st.integers(2, 20),
    share=st.floats(0.01, 1.0),
)
def test_every_token_is_trained_once_an_epoch(
    lengths: list[int], seed: int, context: int, share: float
) -> None:
    corpus = numbered(lengths)
    size = max(1, int(share * sum(lengths)))
    stream = DocumentStream(corpus, seed=seed, tokens_per_batch=size, context=context)
    line: list[int] = []
    step = 0
    while len(line) < 3 * corpus.num_tokens:
        trees = stream.batch(step)
        targets = trained(trees)
        assert len(targets) == size
        document_of = np.searchsorted(corpus.offsets, np.array(targets) - 1, side="right")
        at = 0
        for tree in trees:
            (root,) = tree
            assert root.ids[0] == BOS
            assert 2 <= tree_size(tree) <= context
            inside = len(root.ids) - 1
            assert len(set(document_of[at : at + inside])) == 1  # one document to a piece
            assert (np.diff(root.ids[1:]) == 1).all()  # in its order
            at += inside
        line += targets
        step += 1
    for epoch in range(3):
        span = line[epoch * corpus.num_tokens : (epoch + 1) * corpus.num_tokens]
        assert sorted(span) == corpus.ids.tolist()


@settings(max_examples=50, deadline=None)
@given(lengths=LENGTHS, steps=st.permutations(range(12)))
def test_any_step_alone_equals_the_step_in_the_run(lengths: list[int], steps: list[int]) -> None:
    def fresh() -> DocumentStream:
        return DocumentStream(
            numbered(lengths), seed=1, tokens_per_batch=-(-sum(lengths) // 3), context=9
        )

    in_order = fresh()
    expected = [[t[0].ids.tolist() for t in in_order.batch(step)] for step in range(12)]
    jumping = fresh()  # one stream asked in any order: no step may leave a trace
    for step in steps:
        assert [t[0].ids.tolist() for t in jumping.batch(step)] == expected[step]
        assert [t[0].ids.tolist() for t in fresh().batch(step)] == expected[step]


def test_layout_by_hand() -> None:
    # One document of 7 tokens, batches of 5, context 4 (bos and 3): epoch 0 is 1..7, then again.
    stream = DocumentStream(numbered([7]), seed=0, tokens_per_batch=5, context=4)
    assert [t[0].ids.tolist() for t in stream.batch(0)] == [[0, 1, 2, 3], [0, 4, 5]]
    assert [t[0].ids.tolist() for t in stream.batch(1)] == [[0, 6, 7], [0, 1, 2, 3]]
    assert stream.steps_per_epoch == 7 / 5
    assert stream.mean_length == pytest.approx(7 / 3)  # 123 456 7


def test_epochs_and_seeds_differ_in_order() -> None:
    corpus = numbered([3] * 50)
    orders = [
        trained(DocumentStream(corpus, seed=seed, tokens_per_batch=150, context=9).batch(epoch))
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 4


def test_a_corpus_below_one_batch_is_refused() -> None:
    told = r"text has 7 tokens in 2 documents, .* batch of 8; .*`tokens_per_step` .* most 7 tokens"
    with pytest.raises(DataError, match=told):
        DocumentStream(numbered([3, 4]), seed=0, tokens_per_batch=8, context=4, name="text")


@settings(max_examples=50, deadline=None)
@given(new=LENGTHS, old=LENGTHS, share=st.floats(0.05, 0.9), size=st.integers(2, 40))
def test_a_mixture_holds_its_share_in_every_step(
    new: list[int], old: list[int], share: float, size: int
) -> None:
    replayed = round(share * size)
    main, replay = numbered(new), numbered(old, first=10_000)
    arguments = {"share": share, "seed": 3, "tokens_per_batch": size, "context": 8}
    if not 0 < replayed < size or sum(new) < size - replayed or sum(old) < replayed:
        with pytest.raises(DataError):
            MixedStream(main, replay, **arguments)
        return
    stream = MixedStream(main, replay, **arguments)
    seen: Counter[int] = Counter()
    steps = -(-sum(new) // (size - replayed))
    for step in range(steps):
        targets = trained(stream.batch(step))
        assert len(targets) == size
        assert sum(t >= 10_000 for t in targets) == replayed
        seen.update(targets)
    assert all(seen[token] >= 1 for token in main.ids.tolist())
    again = MixedStream(main, replay, **arguments)
    assert trained(again.batch(steps - 1)) == trained(stream.batch(steps - 1))


# Tokens of a real file.


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    texts = [
        f"Document {i} says caf\N{LATIN SMALL LETTER E WITH ACUTE} <|end|> " * (i % 4 + 1)
        for i in range(30)
    ]
    write_tokenizer(train_bpe(texts, vocab_size=300), folder)
    table = pa.table(
        {
            "id": [f"d{i}" for i in range(30)],
            "text": texts,
            "domain": ["even" if i % 2 == 0 else "odd" for i in range(30)],
            "split": ["heldout" if i % 5 == 0 else "train" for i in range(30)],
        }
    )
    pq.write_table(table, folder / "documents.parquet")
    return folder / "documents.parquet"


def test_documents_become_ids_with_an_end(parquet: Path) -> None:
    tokenizer = load_tokenizer(parquet.parent)
    texts = dict(zip(*(pq.read_table(parquet)[c].to_pylist() for c in ("id", "text")), strict=True))
    corpus = load_corpus_tokens(parquet, tokenizer, split="heldout", domains={"even"})
    assert corpus.names == ["d0", "d10", "d20"]
    assert corpus.ids.dtype == np.uint16
    for i, name in enumerate(corpus.names):
        ids = corpus.document(i).tolist()
        assert ids == [*tokenizer.encode(texts[name]).tolist(), tokenizer.bos]
        assert corpus.num_bytes[i] == len(texts[name].encode())
    assert len(load_corpus_tokens(parquet, tokenizer, split="train")) == 24


@pytest.mark.parametrize("context", [2, 5, 13, 1000])
def test_pieces_of_a_document_train_all_of_it_once(parquet: Path, context: int) -> None:
    tokenizer = load_tokenizer(parquet.parent)
    corpus = load_corpus_tokens(parquet, tokenizer, split="train")
    for i in range(len(corpus)):
        pieces = corpus.pieces(i, context=context)
        assert trained(pieces) == corpus.document(i).tolist()
        assert max(tree_size(piece) for piece in pieces) <= context


def test_an_empty_selection_is_named(parquet: Path) -> None:
    tokenizer = load_tokenizer(parquet.parent)
    with pytest.raises(DataError, match="split 'train' of the domains none, other"):
        load_corpus_tokens(parquet, tokenizer, split="train", domains=["other", "none"])
