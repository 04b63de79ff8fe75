"""Tiny labelled data for the tests of classification."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from train_tiny import artefact, model_artefact

from rung.store.artefact import Artefact

WORDS = ("good", "bad", "here", "there", "what", "now")


def text_of(index: int, draw: np.random.Generator) -> str:
    return f"answer {index} " + " ".join(draw.choice(WORDS, size=5))


def labels_artefact(
    folder: Path, *, num: int = 160, heldout: int = 60, multi_label: bool = False, seed: int = 0
) -> Artefact:
    """Texts of common words. One label: whether `good` or `bad` is there more often. Several: each
    of the two where it is there at all."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    names = ["bad", "good"]
    for side, count, first in (("train", num, 0), ("heldout", heldout, 10_000)):
        rows: list[dict[str, Any]] = []
        while len(rows) < count:
            text = text_of(first + len(rows), draw)
            counts = [text.split().count(name) for name in names]
            if multi_label:
                labels = [name for name, n in zip(names, counts, strict=True) if n]
            elif counts[0] == counts[1]:
                continue
            else:
                labels = [names[int(counts[1] > counts[0])]]
            rows.append({"id": f"labels/{first + len(rows)}", "text": text, "labels": labels})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{side}.jsonl").write_text(lines)
    meaning = {"labels": names, "multi_label": multi_label}
    (folder / "labels.json").write_text(json.dumps(meaning))
    return artefact(folder, "labels")


def named_model(root: Path) -> Artefact:
    """A model artefact that lies under its id, as in a store: a frozen head refers to it."""
    return model_artefact(root / "model-id")
