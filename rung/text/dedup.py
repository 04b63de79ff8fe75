"""Exact and near duplicates: which document says the same as an earlier one.

Near: MinHash over word 5-grams (Broder 1997), banded (Leskovec et al., Mining of Massive
Datasets, 3.4). Candidates that share a band are checked by the whole signature, then joined by
union-find. Signatures are 4 * num_hashes bytes a document and the last step runs in this process:
fine to a few million documents; beyond, replace it by label propagation on the engine.
"""

import numpy as np
import pydantic

from rung.config import Config
from rung.text.engine import daft

col = daft.col
minhash, normalize = daft.functions.minhash, daft.functions.normalize


class Dedup(Config):
    """Removal of repeated documents; the first in the order of the source stays."""

    exact: bool = pydantic.Field(True, description="drop texts equal but for case and spacing")
    near: bool = pydantic.Field(True, description="drop near duplicates by MinHash")
    min_similarity: float = pydantic.Field(
        0.75,
        gt=0,
        le=1,
        description="share of equal MinHash values from which on a text is dropped",
    )
    ngram: int = pydantic.Field(5, ge=1, description="words a shingle")
    bands: int = pydantic.Field(14, ge=1, description="number of bands")
    band_size: int = pydantic.Field(8, ge=1, description="hashes a band")


def exact_duplicates(frame: daft.DataFrame) -> dict[int, int]:
    """rank -> rank of the first document with the same text, ignoring case and spacing.

    Texts are compared by a 64-bit hash and their length: a chance clash is likelier than one in a
    million only above some ten million documents.
    """
    plain = normalize(col("text"), lowercase=True, white_space=True)
    keys = frame.select(col("rank"), plain.alias("plain"))
    length = col("plain").length_bytes()
    keys = keys.select("rank", col("plain").hash().alias("key"), length.alias("n"))
    firsts = keys.groupby("key", "n").agg(col("rank").min().alias("first"))
    pairs = keys.join(firsts, on=["key", "n"]).where(col("rank") != col("first"))
    rows = pairs.select("rank", "first").to_pydict()
    return dict(sorted(zip(rows["rank"], rows["first"], strict=True)))


def near_duplicates(frame: daft.DataFrame, config: Dedup, *, seed: int) -> dict[int, int]:
    """rank -> rank of the first document of its cluster of near duplicates."""
    plain = normalize(col("text"), lowercase=True, remove_punct=True, white_space=True)
    num_hashes = config.bands * config.band_size
    signature = minhash(plain, num_hashes=num_hashes, ngram_size=config.ngram, seed=seed + 1)
    table = frame.select("rank", signature.alias("signature")).sort("rank").to_arrow()
    if len(table) < 2:
        return {}
    ranks = table.column("rank").to_numpy()
    flat = table.column("signature").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    signatures = flat.reshape(len(ranks), num_hashes).astype(np.uint32)
    left, right = _candidates(signatures, config)
    same = (signatures[left] == signatures[right]).mean(axis=1) >= config.min_similarity
    roots = _components(len(ranks), left[same], right[same])
    return {int(ranks[i]): int(ranks[root]) for i, root in enumerate(roots) if root != i}


def _candidates(signatures: np.ndarray, config: Dedup) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows that agree in a band: each with the first row of its bucket."""
    num = len(signatures)
    # A bucket is known by a 64-bit mix of its band; clashes are sorted out by the signatures.
    mix = np.random.default_rng(0).integers(1, 2**63, size=config.band_size, dtype=np.uint64) | 1
    bands = signatures.reshape(num, config.bands, config.band_size).astype(np.uint64)
    buckets = daft.from_pydict(
        {
            "row": np.repeat(np.arange(num), config.bands),
            "band": np.tile(np.arange(config.bands), num),
            "key": (bands * mix).sum(axis=2, dtype=np.uint64).ravel(),
        }
    )
    firsts = buckets.groupby("band", "key").agg(col("row").min().alias("first"))
    pairs = buckets.join(firsts, on=["band", "key"]).where(col("row") != col("first"))
    found = pairs.select("first", "row").distinct().to_pydict()
    left = np.asarray(found["first"], dtype=np.int64)
    right = np.asarray(found["row"], dtype=np.int64)
    order = np.lexsort((right, left))
    return left[order], right[order]


def _components(num: int, left: np.ndarray, right: np.ndarray) -> list[int]:
    """For each of `num` rows the smallest row it is connected to (union-find)."""
    parent = list(range(num))

    def find(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for a, b in zip(left, right, strict=True):
        low, high = sorted((find(int(a)), find(int(b))))
        parent[high] = low
    return [find(row) for row in range(num)]
