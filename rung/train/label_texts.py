"""Labelled texts for training: read from an artefact, split, with targets as arrays."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rung.errors import DataError
from rung.store.artefact import Artefact
from rung.text.rows import Row, read_rows

_EXAMPLE = '{"id": "labels/1f", "text": "The plot drags.", "labels": ["negative"]}'


@dataclass(frozen=True)
class Texts:
    """Some labelled texts. truth: label numbers int64 [N], or 0 and 1 float32 [N, C] where a text
    can have several."""

    ids: list[str]
    texts: list[str]
    truth: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, chosen: Sequence[int] | np.ndarray) -> "Texts":
        """The texts at these indices, in this order."""
        index = [int(i) for i in chosen]
        return Texts(
            [self.ids[i] for i in index], [self.texts[i] for i in index], self.truth[index]
        )


@dataclass(frozen=True)
class LabelledTexts:
    """A `labels` artefact in memory."""

    labels: tuple[str, ...]
    multi_label: bool
    train: Texts
    heldout: Texts


def load_labelled(artefact: Artefact) -> LabelledTexts:
    """Both sides of a `labels` artefact."""
    meaning = json.loads(artefact.file("labels.json").read_text(encoding="utf-8"))
    labels, multi_label = tuple(meaning["labels"]), bool(meaning["multi_label"])
    sides = {}
    for side in ("train", "heldout"):
        rows = [row for _, row in read_rows(artefact.file(f"{side}.jsonl"), example=_EXAMPLE)]
        if not rows:
            raise DataError(f"labels {artefact.short_id} has no {side} text")
        sides[side] = _texts(rows, labels, multi_label)
    return LabelledTexts(labels, multi_label, sides["train"], sides["heldout"])


def _texts(rows: Sequence[Row], labels: Sequence[str], multi_label: bool) -> Texts:
    place = {label: index for index, label in enumerate(labels)}
    truth: np.ndarray
    if multi_label:
        truth = np.zeros((len(rows), len(labels)), dtype=np.float32)
        for index, row in enumerate(rows):
            truth[index, [place[label] for label in row["labels"]]] = 1
    else:
        truth = np.array([place[row["labels"][0]] for row in rows], dtype=np.int64)
    return Texts([row["id"] for row in rows], [row["text"] for row in rows], truth)


def split_validation(texts: Texts, *, fraction: float, seed: int) -> tuple[Texts, Texts]:
    """(to fit, to validate on): a share of every label, drawn by the hash of each text.

    Of texts with several labels each a share of them all is drawn.
    """
    num = len(texts)
    kinds = texts.truth if texts.truth.ndim == 1 else np.zeros(num, dtype=np.int64)
    key = [hashlib.sha256(f"{seed}/validation/{id}".encode()).digest() for id in texts.ids]
    aside: set[int] = set()
    for kind in np.unique(kinds):
        members = sorted((int(i) for i in np.flatnonzero(kinds == kind)), key=lambda i: key[i])
        aside |= set(members[: min(round(fraction * len(members)), len(members) - 1)])
    return (
        texts.take([i for i in range(num) if i not in aside]),
        texts.take(sorted(aside)),
    )


def class_weights(truth: np.ndarray, num_labels: int) -> np.ndarray:
    """Weights float32 [C] that make every label count the same.

    One label a text: N / (C n_c). Several: texts without the label for each with it, at most 100.
    """
    if truth.ndim == 2:
        having = truth.sum(0)
        return np.clip((len(truth) - having) / np.maximum(having, 1), 0.01, 100).astype(np.float32)
    having = np.bincount(truth, minlength=num_labels)
    return (len(truth) / (num_labels * np.maximum(having, 1))).astype(np.float32)
