"""Texts through a classifier: as trees of tokens, as evidence, as labels with probabilities."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rung.errors import ConfigError
from rung.model.attention import TorchForest, to_torch
from rung.model.classifier import Classifier, Labelling, load_classifier
from rung.model.precision import autocast, pick_device, pick_dtype
from rung.text.normalise import normalise
from rung.tokens.forest import Tree, document, pack, tree_size
from rung.tokens.tokenizer import Tokenizer, load_tokenizer
from rung.tokens.views import split_microbatches

LEAST_ROOM = 8
"""Tokens that a template must leave for the text."""


@dataclass(frozen=True)
class Encoded:
    """trees[i] is text i. truncated: how many texts lost their end."""

    trees: list[Tree]
    truncated: int

    @property
    def lengths(self) -> list[int]:
        return [tree_size(tree) for tree in self.trees]


@dataclass(frozen=True)
class Prediction:
    """labels: what holds (one, or any number of a multi-label classifier), likeliest first.
    probabilities: of every label, likeliest first.

    Example: Prediction(("negative",), {"negative": 0.93, "positive": 0.07})
    """

    labels: tuple[str, ...]
    probabilities: dict[str, float]


def split_template(template: str) -> tuple[str, str]:
    """What stands before and after the text; ConfigError unless {text} is there once."""
    if template.count("{text}") != 1:
        raise ConfigError(
            f"template {template!r} has {{text}} {template.count('{text}')} times, it must be there"
            ' once, as in "Review: {text}\\nThe review is"'
        )
    before, after = template.split("{text}")
    return before, after


def encode_texts(texts: Sequence[str], tokenizer: Tokenizer, labelling: Labelling) -> Encoded:
    """Each text in its template as a tree of at most `max_tokens` tokens; weight 1 = of the text.

    Of a longer text the end is cut off. Text never becomes a special token.
    """
    head, tail = split_template(labelling.template)
    within = "" if head else None  # what a text follows: some vocabularies mind
    before, after, *encoded = tokenizer.encode_parts(
        [(None, head), ("", tail), *((within, normalise(text).strip()) for text in texts)]
    )
    opening = np.append(np.int32(tokenizer.bos), before)
    room = labelling.max_tokens - len(opening) - len(after)
    if room < LEAST_ROOM:
        raise ConfigError(
            f"max_tokens {labelling.max_tokens} leaves {room} tokens for a text beside the"
            f" template's {len(opening) + len(after)}; at least {LEAST_ROOM} are due: raise"
            " max_tokens or shorten the template"
        )
    trees, truncated = [], 0
    for ids in encoded:
        truncated += len(ids) > room
        ids = ids[:room]
        weights = np.zeros(len(opening) + len(ids) + len(after), dtype=np.float32)
        weights[len(opening) : len(opening) + len(ids)] = 1
        trees.append(document(np.concatenate([opening, ids, after]), weights))
    return Encoded(trees, truncated)


def pack_texts(trees: Sequence[Tree], device: torch.device | str = "cpu") -> TorchForest:
    """Several texts in one forest on a device."""
    return to_torch(pack(trees), device)


@torch.no_grad()
def read_evidence(
    model: Classifier, trees: Sequence[Tree], *, microbatch_tokens: int, dtype: torch.dtype
) -> Iterator[Tensor]:
    """Evidence float32 [B, 2 W] of the texts in order, microbatch by microbatch."""
    device = model.head.mean.device
    lengths = [tree_size(tree) for tree in trees]
    for part in split_microbatches(range(len(trees)), lengths, max_tokens=microbatch_tokens):
        with autocast(dtype, device):
            yield model.evidence(pack_texts([trees[i] for i in part], device))


class TextClassifier:
    """A classifier folder, ready for texts."""

    def __init__(self, folder: Path, *, device: str = "auto") -> None:
        where = pick_device(device)
        self.model = load_classifier(folder, device=where)
        self.tokenizer = load_tokenizer(folder)
        self.dtype = pick_dtype("auto", where)
        self.truncated = 0

    def predict(self, texts: Sequence[str], *, microbatch_tokens: int = 4096) -> list[Prediction]:
        """A prediction for each text; `truncated` counts texts whose end was not read."""
        if not texts:
            return []
        encoded = encode_texts(texts, self.tokenizer, self.model.labelling)
        self.truncated += encoded.truncated
        found: list[Prediction] = []
        for evidence in read_evidence(
            self.model, encoded.trees, microbatch_tokens=microbatch_tokens, dtype=self.dtype
        ):
            with torch.no_grad():
                logits = self.model.head(evidence)
            probabilities = self.model.labelling.probabilities(logits).cpu().numpy()
            found += [_prediction(row, self.model.labelling) for row in probabilities]
        return found


def _prediction(probabilities: np.ndarray, labelling: Labelling) -> Prediction:
    order = [int(i) for i in np.argsort(-probabilities, kind="stable")]
    if labelling.multi_label:
        chosen = [i for i in order if probabilities[i] >= labelling.thresholds[i]]
    else:
        chosen = order[:1]
    return Prediction(
        labels=tuple(labelling.labels[i] for i in chosen),
        probabilities={labelling.labels[i]: float(probabilities[i]) for i in order},
    )
