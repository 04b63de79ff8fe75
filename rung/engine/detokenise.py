"""Text from tokens as they arrive, whole characters only."""

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are no character, or not yet."""


class Detokeniser:
    """Turns token ids into pieces of text whose sum is the decoded whole.

    A token can end inside a character. What may still change is held back: at most the last
    character of the text, and only while it is incomplete.

    decode: ids -> text. It is called on a short tail, so a long answer costs no more per token.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        # Decoders that treat the first token of a text specially (a stripped leading space) see
        # the tokens of the piece before, and that piece's text is cut off again.
        self._before: list[int] = []
        self._pending: list[int] = []
        self._given = 0  # characters of the pending text that are out already

    def push(self, token: int) -> str:
        """The text that `token` completes; often empty, never half a character."""
        self._pending.append(token)
        text = self._text()
        if text.endswith(REPLACEMENT):
            # an unfinished character is decoded as one replacement; those before it are final
            piece = text[self._given : -1]
            self._given = max(self._given, len(text) - 1)
            return piece
        piece = text[self._given :]
        if text:
            self._before, self._pending, self._given = self._pending, [], 0
        return piece

    @property
    def holding(self) -> bool:
        """Whether tokens wait for the rest of their character."""
        return bool(self._pending)

    def finish(self) -> str:
        """What was held back: a character that never became whole, as U+FFFD."""
        piece = self._text()[self._given :]
        self._before, self._pending, self._given = [], [], 0
        return piece

    def _text(self) -> str:
        return self._decode(self._before + self._pending)[len(self._decode(self._before)) :]
