"""The endless stream of pre-training batches: batch(step) is a pure function of (seed, step)."""

from typing import Protocol

import numpy as np

from rung.errors import DataError
from rung.tokens.corpus import CorpusTokens, cut
from rung.tokens.forest import Tree


class Stream(Protocol):
    """What a training loop needs of a stream."""

    tokens_per_batch: int
    mean_length: float  # tokens of a document, or of its piece where it is longer than the context

    def batch(self, step: int) -> list[Tree]:
        """Trees of one step; exactly `tokens_per_batch` trained tokens."""


class DocumentStream:
    """Documents in a new random order each epoch, laid end to end and cut into batches.

    Batch i holds the tokens [i * tokens_per_batch, (i + 1) * tokens_per_batch) of that endless
    line, so every token is trained exactly once an epoch and a batch may span two epochs. A
    document is cut where a batch ends and after `context` - 1 tokens. Every piece is a root that
    begins with bos, which is input only: a batch computes `tokens_per_batch` tokens plus one for
    each piece, and trains exactly `tokens_per_batch`.

    A step costs O(log documents) to find, and a permutation when its epoch is new.
    """

    def __init__(
        self,
        corpus: CorpusTokens,
        *,
        seed: int,
        tokens_per_batch: int,
        context: int,
        name: str = "corpus",
    ) -> None:
        if context < 2:
            raise DataError(f"context = {context}; it must be 2 or more")
        if tokens_per_batch < 1:
            raise DataError(f"tokens_per_batch = {tokens_per_batch}; it must be 1 or more")
        if corpus.num_tokens < tokens_per_batch:
            raise DataError(
                f"{name} has {corpus.num_tokens:,} tokens in {len(corpus):,} documents, fewer than "
                f"one batch of {tokens_per_batch:,}; give it more text, or lower `tokens_per_step` "
                f"until a batch takes at most {corpus.num_tokens:,} tokens of it"
            )
        self.corpus = corpus
        self.tokens_per_batch = tokens_per_batch
        pieces = np.ceil(np.diff(corpus.offsets) / (context - 1)).sum()
        self.mean_length = corpus.num_tokens / float(pieces)
        self._seed = seed
        self._context = context
        self._layouts: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def steps_per_epoch(self) -> float:
        """Batches in one pass over the corpus; rarely a whole number."""
        return self.corpus.num_tokens / self.tokens_per_batch

    def batch(self, step: int) -> list[Tree]:
        """The trees of one step, step >= 0."""
        return [tree for piece in self._spans(step) for tree in self._cut(piece)]

    def _cut(self, span: tuple[int, int]) -> list[Tree]:
        first, last = span
        return cut(self.corpus.ids[first:last], bos=self.corpus.bos, context=self._context)

    def _spans(self, step: int) -> list[tuple[int, int]]:
        """(first, last) into corpus.ids of every document part of this step, in order."""
        at = step * self.tokens_per_batch
        end = at + self.tokens_per_batch
        spans: list[tuple[int, int]] = []
        while at < end:
            epoch, place = divmod(at, self.corpus.num_tokens)
            order, starts = self._layout(epoch)
            slot = int(np.searchsorted(starts, place, side="right")) - 1
            stop = min(end, epoch * self.corpus.num_tokens + int(starts[-1]))
            while at < stop:
                first = int(self.corpus.offsets[order[slot]])
                skip = at - epoch * self.corpus.num_tokens - int(starts[slot])
                take = min(int(starts[slot + 1] - starts[slot]) - skip, stop - at)
                spans.append((first + skip, first + skip + take))
                at += take
                slot += 1
        return spans

    def _layout(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Order of the documents in this epoch, and where each starts: int64 [D], [D + 1]."""
        if epoch not in self._layouts:
            order = np.random.default_rng((self._seed, epoch)).permutation(len(self.corpus))
            lengths = np.diff(self.corpus.offsets)[order]
            starts = np.concatenate(([0], np.cumsum(lengths)))
            # Two epochs at most are in use: the one that ends in a batch and the one that begins.
            self._layouts = {e: v for e, v in self._layouts.items() if e == epoch - 1}
            self._layouts[epoch] = (order, starts)
        return self._layouts[epoch]


class MixedStream:
    """New text with a fixed share of replayed old text in every batch (continued pre-training).

    The share is exact in every step rather than on average, so the learning signal of the old
    text never pauses. Each side keeps its own order and its own epochs.
    """

    def __init__(
        self,
        main: CorpusTokens,
        replay: CorpusTokens,
        *,
        share: float,
        seed: int,
        tokens_per_batch: int,
        context: int,
        names: tuple[str, str] = ("corpus", "replay"),
    ) -> None:
        """share: of trained tokens that come from `replay`, rounded to whole tokens a batch."""
        replayed = round(share * tokens_per_batch)
        if not 0 < share < 1 or not 0 < replayed < tokens_per_batch:
            raise DataError(
                f"replay share {share} of a batch of {tokens_per_batch:,} tokens is {replayed:,} "
                "tokens; it must leave at least one token on each side (leave replay out for none)"
            )
        self.tokens_per_batch = tokens_per_batch
        self.main = DocumentStream(
            main,
            seed=seed,
            tokens_per_batch=tokens_per_batch - replayed,
            context=context,
            name=names[0],
        )
        self.replay = DocumentStream(
            replay, seed=seed + 1, tokens_per_batch=replayed, context=context, name=names[1]
        )
        self.mean_length = self.main.mean_length  # most of the tokens are its

    @property
    def steps_per_epoch(self) -> float:
        """Batches in one pass over the new text."""
        return self.main.steps_per_epoch

    def batch(self, step: int) -> list[Tree]:
        """The trees of one step: new text first, then replayed text."""
        return self.main.batch(step) + self.replay.batch(step)
