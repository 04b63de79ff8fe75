"""What the tokens of a sentencepiece vocabulary without bytes spell."""

import json
from typing import Any

import tokenizers

from rung.tokens.token_bytes import vocabulary_bytes
from rung.tokens.tokenizer import Tokenizer

_SPACE = "\u2581"


class Pieces:
    """A vocabulary whose tokens are text with a mark for spaces, in llguidance's terms.

    tokens: bytes by id. Ids without a token spell nothing.
    """

    def __init__(self, text: str, tokens: list[bytes], special: list[int], eos: int, bos: int):
        # a copy: the cache of llguidance's views must not keep the caller's tokenizer alive
        self._bpe = tokenizers.Tokenizer.from_str(text)
        self.tokens = tokens
        self.special_token_ids = special
        self.eos_token_id = eos
        self.bos_token_id = bos

    def __call__(self, text: str) -> list[int]:
        """Ids of `text` within a text."""
        if not isinstance(text, str):  # bytes: asked once, to find out
            raise TypeError(f"text, not {type(text).__name__}")
        ids: list[int] = self._bpe.encode(text, add_special_tokens=False).ids
        return ids

    @classmethod
    def read(cls, tokenizer: Tokenizer) -> "Pieces | None":
        """Of a tokenizer; None where its tokens are no such pieces."""
        text = tokenizer.to_json()
        decoder = json.loads(text).get("decoder") or {}
        steps = decoder.get("decoders", [decoder])
        if not all(_keeps_text(step) for step in steps):
            return None
        special = sorted(tokenizer.special_ids)
        tokens = list(vocabulary_bytes(tokenizer))
        return cls(text, tokens, special, tokenizer.stop_ids[0], tokenizer.bos)


def _keeps_text(step: dict[str, Any]) -> bool:
    """Whether a step of a decoder leaves text as it is, but for the mark of a space."""
    if step.get("type") == "Replace":
        return step["pattern"] == {"String": _SPACE} and step["content"] == " "
    return step.get("type") in ("Metaspace", "Fuse", "Strip")
