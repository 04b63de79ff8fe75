"""A forest of token segments: documents, conversations, pairs and groups in one flat batch.

A segment attends to itself causally and to its ancestors, to nothing else. A document is one root
segment. A preference pair is a prompt (root) with two children, a ranking of K answers a prompt
with K children. Nothing is padded and the prompt is computed once.

Positions continue from the parent's end. A trained token is a triple (predictor index, target id,
weight): the predictor of a token is the token before it, and for the first token of a child the
last token of its parent. The first token of a root has no predictor and is never trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Segment:
    """Token ids with a weight per token as a target (0 = not trained).

    ids: int32 [n], n >= 1. weights: float32 [n]. parent: index of the parent within its tree
    (always a smaller one), or -1 for the root.
    """

    ids: np.ndarray
    weights: np.ndarray
    parent: int = -1


Tree = tuple[Segment, ...]
"""One sample: segments in topological order, the first is the root."""


def document(ids: np.ndarray, weights: np.ndarray | None = None) -> Tree:
    """A tree of one root; without `weights` every token is trained (the first cannot be)."""
    ids = np.asarray(ids, dtype=np.int32)
    if weights is None:
        weights = np.ones(len(ids), dtype=np.float32)
    return (Segment(ids, np.asarray(weights, dtype=np.float32)),)


def group(prompt: np.ndarray, answers: Sequence[np.ndarray]) -> Tree:
    """A prompt with one child per answer; every answer token is trained, the prompt is not."""
    prompt = np.asarray(prompt, dtype=np.int32)
    children = [
        Segment(np.asarray(a, dtype=np.int32), np.ones(len(a), dtype=np.float32), parent=0)
        for a in answers
    ]
    return (Segment(prompt, np.zeros(len(prompt), dtype=np.float32)), *children)


def tree_size(tree: Tree) -> int:
    """Number of tokens of a tree."""
    return sum(len(segment.ids) for segment in tree)


@dataclass(frozen=True)
class Forest:
    """A packed batch of trees. T tokens, S segments, N trained tokens, in flat order.

    ids, positions: int64 [T]. seg_start, seg_end, seg_parent, seg_tree: int64 [S]; seg_parent is
    an index into the segments of this forest or -1; seg_tree is the index of the tree.
    predictor: int64 [N], index into T of the token whose output predicts the target.
    target: int64 [N] token ids. weight: float32 [N], > 0. target_seg: int64 [N], the segment that
    the target belongs to. target_at: int64 [N], index into T of the target itself.
    """

    ids: np.ndarray
    positions: np.ndarray
    seg_start: np.ndarray
    seg_end: np.ndarray
    seg_parent: np.ndarray
    seg_tree: np.ndarray
    predictor: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    target_seg: np.ndarray
    target_at: np.ndarray

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    @property
    def num_segments(self) -> int:
        return len(self.seg_start)

    @property
    def answers(self) -> np.ndarray:
        """Indices of the segments that have a parent [A]: the answers, where roots are prompts."""
        return np.flatnonzero(self.seg_parent >= 0)

    def ancestors(self, segment: int) -> list[int]:
        """Segments above `segment`, root first."""
        chain: list[int] = []
        while (segment := int(self.seg_parent[segment])) >= 0:
            chain.append(segment)
        return chain[::-1]


def pack(trees: Sequence[Tree]) -> Forest:
    """All trees in one flat forest, in order; no padding, nothing dropped."""
    segments = [segment for tree in trees for segment in tree]
    assert segments, "a forest needs segments"
    assert all(len(s.ids) for s in segments), "a segment needs tokens"
    lengths = np.array([len(s.ids) for s in segments], dtype=np.int64)
    end = np.cumsum(lengths)
    start = end - lengths
    first = np.repeat(
        np.cumsum([0] + [len(tree) for tree in trees[:-1]]), [len(tree) for tree in trees]
    )
    relative = np.array([s.parent for s in segments], dtype=np.int64)
    parent = np.where(relative < 0, -1, relative + first)
    assert (parent < np.arange(len(segments))).all(), "a parent comes before its children"

    offset = np.zeros(len(segments), dtype=np.int64)  # position of the segment's first token
    before = start - 1  # predictor of the first token; -1 for roots
    for index, up in enumerate(parent):
        if up >= 0:
            offset[index] = offset[up] + lengths[up]
            before[index] = end[up] - 1
        else:
            before[index] = -1

    at = np.arange(end[-1], dtype=np.int64)
    segment_of = np.repeat(np.arange(len(segments)), lengths)
    predictor = at - 1
    predictor[start] = before
    weight = np.concatenate([s.weights for s in segments]).astype(np.float32)
    ids = np.concatenate([s.ids for s in segments]).astype(np.int64)
    trained = np.flatnonzero((weight > 0) & (predictor >= 0))
    return Forest(
        ids=ids,
        positions=at - start[segment_of] + offset[segment_of],
        seg_start=start,
        seg_end=end,
        seg_parent=parent,
        seg_tree=np.repeat(np.arange(len(trees)), [len(tree) for tree in trees]),
        predictor=predictor[trained],
        target=ids[trained],
        weight=weight[trained],
        target_seg=segment_of[trained],
        target_at=trained,
    )
