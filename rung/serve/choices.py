"""What the answers of a request have become so far: text, tokens, how each ended."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rung.engine.service import Piece, TokenLogprob
from rung.serve.assembly import TokenTexts, shown_bytes
from rung.tokens.token_bytes import vocabulary_bytes
from rung.tokens.tokenizer import Tokenizer

Json = dict[str, Any]


LEAST = -9999.0
"""What stands for a log-probability of minus infinity, which JSON cannot write."""


class ShownToken(NamedTuple):
    """A token as a client sees it. text: all of an answer joined are its text."""

    text: str
    token: TokenLogprob


@dataclass
class Choice:
    """One answer at work."""

    parts: list[str] = field(default_factory=list)
    tokens: list[ShownToken] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    finish: str | None = None
    length: int = 0
    _num_told: int = 0
    _texts: TokenTexts = field(default_factory=TokenTexts)

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def push(self, piece: Piece) -> list[ShownToken]:
        """Take a piece in; its tokens as they are shown."""
        self.parts.append(piece.text)
        self.length += len(piece.text)
        self.ids += piece.ids
        self.finish = piece.finish
        last = len(piece.tokens) - 1
        shown = [
            ShownToken(self._texts.push(t.raw, last=i == last and piece.finish is not None), t)
            for i, t in enumerate(piece.tokens)
        ]
        if piece.finish is not None:
            shown = _cut(shown, self._texts.over(self.length))
        self.tokens += shown
        return shown

    def fresh_ids(self) -> list[int]:
        """Ids since the last call: those of a chunk of a stream."""
        fresh, self._num_told = self.ids[self._num_told :], len(self.ids)
        return fresh


def _cut(tokens: Sequence[ShownToken], over: int) -> list[ShownToken]:
    """`tokens` without the last `over` characters: what a stop string took away."""
    kept = []
    for shown in reversed(tokens):
        size = min(over, len(shown.text))
        over -= size
        kept.append(shown._replace(text=shown.text[: len(shown.text) - size]))
    return kept[::-1]


def chat_logprobs(tokens: Sequence[ShownToken], tokenizer: Tokenizer) -> Json:
    """{"content": [{"token", "logprob", "bytes", "top_logprobs"}, ...]}"""
    table = vocabulary_bytes(tokenizer)
    content = [
        {
            "token": shown.text,
            "logprob": _finite(shown.token.logprob),
            "bytes": list(shown.token.raw),
            "top_logprobs": [
                {"token": shown_bytes(raw), "logprob": _finite(value), "bytes": list(raw)}
                for raw, value in ((_spell(table, i), value) for i, value in shown.token.top)
            ],
        }
        for shown in tokens
        if shown.token.raw  # what ended the answer is no part of it
    ]
    return {"content": content, "refusal": None}


def text_logprobs(tokens: Sequence[ShownToken], tokenizer: Tokenizer, *, offset: int) -> Json:
    """Lists of equal length, an entry a token; offset: characters of the answer before these.

    The token itself is always among the top ones, so that a reader can tell whether it was the
    likeliest. None: the first token of a text has nothing before it.
    """
    table = vocabulary_bytes(tokenizer)
    offsets: list[int] = []
    tops: list[dict[str, float] | None] = []
    for shown in tokens:
        offsets.append(offset)
        offset += len(shown.text)
        if shown.token.logprob is None:
            tops.append(None)
            continue
        top: dict[str, float] = {}
        for i, value in (*shown.token.top, (shown.token.id, shown.token.logprob)):
            top.setdefault(shown_bytes(_spell(table, i)), _finite(value))
        tops.append(top)
    return {
        "tokens": [shown.text for shown in tokens],
        "token_logprobs": [
            None if shown.token.logprob is None else _finite(shown.token.logprob)
            for shown in tokens
        ],
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def _spell(table: Sequence[bytes], token: int) -> bytes:
    """A model can have more rows than its tokenizer has ids: such a token spells nothing."""
    return table[token] if token < len(table) else b""


def _finite(value: float | None) -> float:
    return LEAST if value is None else max(value, LEAST)
