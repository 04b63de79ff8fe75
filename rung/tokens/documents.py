"""Rows of a corpus file, read in pieces so that memory does not grow with the corpus."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rung.errors import DataError

BATCH_ROWS = 4096


def read_rows(
    path: Path, *, split: str | None = None, columns: Sequence[str] = ("id", "text", "domain")
) -> Iterator[pa.RecordBatch]:
    """Record batches of `documents.parquet` in file order, rows of `split` only when one is given.

    Raises DataError for a file that is missing, not parquet, or lacks a column.
    """
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; build the corpus again with rung curate") from None
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is not a readable parquet file: {error}") from None
    wanted = list(dict.fromkeys([*columns, "split"]))
    missing = [name for name in wanted if name not in file.schema_arrow.names]
    if missing:
        have = ", ".join(file.schema_arrow.names)
        raise DataError(f"{path} has no column {', '.join(missing)}; it has: {have}")
    with file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=wanted):
            if split is not None:
                batch = batch.filter(pc.equal(batch.column("split"), split))
            if batch.num_rows:
                yield batch


def text_sizes(path: Path, *, split: str) -> np.ndarray:
    """UTF-8 bytes of every document of `split`, int64, in file order."""
    sizes = [
        pc.binary_length(batch.column("text").cast(pa.large_binary())).to_numpy()
        for batch in read_rows(path, split=split, columns=("text",))
    ]
    return np.concatenate(sizes).astype(np.int64) if sizes else np.zeros(0, dtype=np.int64)


def choose_rows(sizes: np.ndarray, *, max_bytes: int, seed: int) -> np.ndarray:
    """Boolean mask: documents in seeded random order until the next would exceed `max_bytes`.

    At least one document is chosen, however long it is. max_bytes 0 means all.
    """
    chosen = np.ones(len(sizes), dtype=bool)
    if max_bytes and sizes.sum() > max_bytes:
        order = np.random.default_rng(seed).permutation(len(sizes))
        fits = np.cumsum(sizes[order]) <= max_bytes
        fits[0] = True
        chosen[order] = fits
    return chosen
