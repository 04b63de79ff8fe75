"""A corpus as token ids: one flat array, one slice a document."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rung.errors import DataError
from rung.tokens.documents import read_rows
from rung.tokens.forest import Tree, document
from rung.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class CorpusTokens:
    """Documents as ids, each ended by <|endoftext|>, none begun by it (pieces add it).

    ids: uint16 (int32 above 65,536 entries) [N]. offsets: int64 [D + 1]; document i is
    ids[offsets[i]:offsets[i + 1]]. num_bytes: int64 [D], UTF-8 bytes of the text: the denominator
    of bits per byte. names, domains: D strings. bos: the id that begins every piece.
    """

    ids: np.ndarray
    offsets: np.ndarray
    num_bytes: np.ndarray
    names: list[str]
    domains: list[str]
    bos: int

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_tokens(self) -> int:
        """Trained tokens of one epoch: the texts and one end each."""
        return len(self.ids)

    def document(self, index: int) -> np.ndarray:
        """Ids of one document and its end."""
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def pieces(self, index: int, *, context: int) -> list[Tree]:
        """One document as trees of at most `context` tokens; every token of it is a target once.

        For bits per byte: the sum over the pieces, end included, over `num_bytes[index]`.
        """
        return cut(self.document(index), bos=self.bos, context=context)


def cut(ids: np.ndarray, *, bos: int, context: int) -> list[Tree]:
    """`ids` as roots of at most `context` tokens, each begun by `bos`, which is never a target.

    A later piece does not see the earlier one: simple, and with documents shorter than the
    context (most are) rare. In exchange no token is computed twice and every root looks alike.
    """
    assert context >= 2, "a piece is bos and at least one token"
    step = context - 1
    head = np.array([bos], dtype=np.int32)
    return [
        document(np.concatenate((head, ids[start : start + step].astype(np.int32))))
        for start in range(0, len(ids), step)
    ]


def load_corpus_tokens(
    path: Path, tokenizer: Tokenizer, *, split: str, domains: Collection[str] | None = None
) -> CorpusTokens:
    """Tokenise the documents of `split` (and `domains`) of a documents.parquet, in file order.

    Raises DataError when none is left. About 4 MB/s a core; the ids take 2 bytes a token.
    """
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
    end = np.array([tokenizer.document_end], dtype=dtype)
    parts: list[np.ndarray] = []
    lengths: list[int] = []
    num_bytes: list[int] = []
    names: list[str] = []
    of_domain: list[str] = []
    for rows in _rows(path, split=split, domains=domains):
        texts = [text for _, text, _ in rows]
        for (name, text, domain), ids in zip(rows, tokenizer.encode_batch(texts), strict=True):
            parts += [ids.astype(dtype), end]
            lengths.append(len(ids) + 1)
            num_bytes.append(len(text.encode("utf-8")))
            names.append(name)
            of_domain.append(domain)
    if not names:
        among = f" of the domains {', '.join(sorted(domains))}" if domains is not None else ""
        raise DataError(f"{path} has no document of split {split!r}{among}")
    return CorpusTokens(
        ids=np.concatenate(parts),
        offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        num_bytes=np.array(num_bytes, dtype=np.int64),
        names=names,
        domains=of_domain,
        bos=tokenizer.bos,
    )


def _rows(
    path: Path, *, split: str, domains: Collection[str] | None
) -> Iterator[list[tuple[str, str, str]]]:
    for batch in read_rows(path, split=split):
        columns = [batch.column(name).to_pylist() for name in ("id", "text", "domain")]
        rows = [row for row in zip(*columns, strict=True) if domains is None or row[2] in domains]
        if rows:
            yield rows
