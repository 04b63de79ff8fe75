"""How long rows are, how much of them is trained on, and how one looks."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from rung.text.messages import Message

MAX_EXAMPLE = 1200  # characters of an example that are shown


class Piece(NamedTuple):
    """A stretch of a row. trained: whether the loss counts it."""

    text: str
    trained: bool


@dataclass(frozen=True)
class Lengths:
    """Of a set of rows, in `unit`: "characters" or "tokens".

    supervised: how many of `total` are trained on.
    """

    unit: str
    rows: int
    median: int
    p95: int
    longest: int
    total: int
    supervised: int

    @property
    def supervised_share(self) -> float:
        return self.supervised / self.total if self.total else 0.0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "supervised_share": round(self.supervised_share, 4)}

    def describe(self) -> str:
        """tokens: median 80, 95 % below 300, longest 900; 61.3 % of 65,600 are trained on"""
        return (
            f"{self.unit}: median {self.median:,}, 95 % up to {self.p95:,}, longest "
            f"{self.longest:,}; {100 * self.supervised_share:.1f} % of {self.total:,} "
            "are trained on"
        )


def measure(sizes: Iterable[tuple[int, int]], *, unit: str) -> Lengths:
    """From (length, supervised part) of each row."""
    pairs = list(sizes)
    lengths = sorted(length for length, _ in pairs) or [0]
    return Lengths(
        unit=unit,
        rows=len(pairs),
        median=round(statistics.median(lengths)),
        p95=lengths[min(len(lengths) - 1, int(0.95 * len(lengths)))],
        longest=lengths[-1],
        total=sum(lengths),
        supervised=sum(supervised for _, supervised in pairs),
    )


def message_pieces(messages: Sequence[Message]) -> list[Piece]:
    """A conversation as people read it; the answers are trained on unless their weight is 0."""
    pieces: list[Piece] = []
    for message in messages:
        trained = message["role"] == "assistant" and message.get("weight", 1) > 0
        pieces += [Piece(f"{message['role']}: ", False), Piece(message["content"], trained)]
        pieces.append(Piece("\n", False))
    return pieces[:-1]


def message_size(messages: Sequence[Message]) -> tuple[int, int]:
    """(characters, those of answers that are trained on) of the contents."""
    trained = [m for m in messages if m["role"] == "assistant" and m.get("weight", 1) > 0]
    return sum(len(m["content"]) for m in messages), sum(len(m["content"]) for m in trained)


def shorten(pieces: Sequence[Piece], *, limit: int = MAX_EXAMPLE) -> list[Piece]:
    """`pieces` in about `limit` characters: the middle of the longest ones makes way."""
    over = sum(len(piece.text) for piece in pieces) - limit
    if over <= 0:
        return list(pieces)
    room = max(40, limit // max(1, sum(len(piece.text) > 40 for piece in pieces)))
    return [
        piece
        if len(piece.text) <= room
        else Piece(f"{piece.text[: room // 2]} ... {piece.text[-room // 2 :]}", piece.trained)
        for piece in pieces
    ]


def bracketed(pieces: Sequence[Piece]) -> str:
    """What is trained on stands in [brackets]: for logs and pipes, which have no colours."""
    return "".join(f"[{text}]" if trained and text else text for text, trained in pieces)
