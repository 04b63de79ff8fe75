"""The data engine (Daft), set up to be quiet: no telemetry, no progress bars of its own."""

import os
from collections.abc import Sequence

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("DAFT_ANALYTICS_ENABLED", "0")
os.environ.setdefault("DAFT_PROGRESS_BAR", "0")

import daft
import pyarrow as pa

from rung.text.record import Document

__all__ = ["build_frame", "daft"]


def build_frame(documents: Sequence[Document], metas: Sequence[str]) -> daft.DataFrame:
    """One row a document in order: rank, id, text, domain, group, meta, reason (null: kept)."""
    columns = {
        "rank": pa.array(range(len(documents)), pa.int64()),
        "id": pa.array([_encodable(d.id) for d in documents], pa.large_string()),
        "text": pa.array([_encodable(d.text) for d in documents], pa.large_string()),
        "domain": pa.array([d.domain for d in documents], pa.large_string()),
        "group": pa.array([_encodable(d.group) for d in documents], pa.large_string()),
        "meta": pa.array(metas, pa.large_string()),
        "reason": pa.nulls(len(documents), pa.large_string()),
    }
    return daft.from_arrow(pa.table(columns))


def _encodable(text: str) -> str:
    """Lone surrogates, which have no UTF-8 form, become U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
