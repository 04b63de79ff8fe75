"""The held-out documents that every model is measured on: the same for all, a stated sample."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import Field

from rung.config import Config
from rung.tokens.documents import read_rows
from rung.tokens.tokenizer import Tokenizer


class HeldoutConfig(Config):
    """Which held-out text is read. `ngram` and `evaluate` must agree, so they share this record."""

    bytes_per_domain: int = Field(
        default=60_000, gt=0, description="held-out text read per domain, UTF-8 bytes"
    )
    bytes_per_corpus: int = Field(
        default=240_000,
        gt=0,
        description="held-out text read per corpus, shared equally by its domains",
    )


@dataclass(frozen=True)
class HeldoutDocument:
    """A held-out document, whole or cut at its end by the limit of its domain.

    Example: HeldoutDocument("stdlib/json.dumps", "stdlib", "json.dumps(obj, ...) ...", True)
    """

    id: str
    domain: str
    text: str
    whole: bool

    @property
    def num_bytes(self) -> int:
        return len(self.text.encode())


def read_heldout(parquet: Path, config: HeldoutConfig, *, seed: int) -> list[HeldoutDocument]:
    """A seeded sample of the held-out split, sorted by domain; [] where nothing is held out.

    The order within a domain is by a hash of (seed, id), so a sample never depends on row order.
    The last document of a domain is cut at the limit: the bytes read are exactly the limit where
    the domain has that many.
    """
    by_domain: dict[str, list[tuple[str, str]]] = {}
    for batch in read_rows(parquet, split="heldout"):
        for row in batch.to_pylist():
            by_domain.setdefault(row["domain"], []).append((row["id"], row["text"]))
    if not by_domain:
        return []
    limit = min(config.bytes_per_domain, max(1, config.bytes_per_corpus // len(by_domain)))
    return [
        document
        for domain in sorted(by_domain)
        for document in _sample(domain, by_domain[domain], limit=limit, seed=seed)
    ]


def _sample(
    domain: str, rows: Sequence[tuple[str, str]], *, limit: int, seed: int
) -> list[HeldoutDocument]:
    def order(row: tuple[str, str]) -> str:
        return hashlib.sha256(f"{seed}/{row[0]}".encode()).hexdigest()

    left = limit
    taken = []
    for name, text in sorted(rows, key=order):
        kept = text.encode()[:left].decode(errors="ignore")
        if not kept:
            break
        taken.append(HeldoutDocument(name, domain, kept, whole=len(kept) == len(text)))
        left -= len(kept.encode())
    return taken


def document_ids(tokenizer: Tokenizer, documents: Sequence[HeldoutDocument]) -> list[np.ndarray]:
    """Token ids of each document; a whole one is ended, as in training, and charged for it."""
    encoded = tokenizer.encode_batch([document.text for document in documents])
    end = np.int32(tokenizer.document_end)
    return [
        np.append(ids, end) if document.whole else ids
        for document, ids in zip(documents, encoded, strict=True)
    ]
