"""The bytes of each token of a vocabulary: what a token adds to the text, half characters too."""

import json
from typing import Any
from weakref import WeakKeyDictionary

from rung.tokens.tokenizer import Tokenizer


def byte_alphabet() -> dict[str, int]:
    """The characters that byte-level vocabularies write for bytes: printable ones as they are, the
    others as the characters from U+0100 on, in order (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {
        chr(0x100 + number): byte for number, byte in enumerate(others)
    }


def vocabulary_bytes(tokenizer: Tokenizer) -> tuple[bytes, ...]:
    """Bytes by id; those of a special token are its name, those of an unused id are empty.

    Read once for each tokenizer.
    """
    if tokenizer not in _known:
        _known[tokenizer] = _read(tokenizer)
    return _known[tokenizer]


_known: WeakKeyDictionary[Tokenizer, tuple[bytes, ...]] = WeakKeyDictionary()


def _read(tokenizer: Tokenizer) -> tuple[bytes, ...]:
    content: dict[str, Any] = json.loads(tokenizer.to_json())
    alphabet = byte_alphabet()
    byte_level = '"ByteLevel"' in json.dumps(content.get("decoder"))
    vocabulary = content["model"]["vocab"]
    if isinstance(vocabulary, list):  # unigram: [text, score] in id order
        vocabulary = {text: number for number, (text, _) in enumerate(vocabulary)}
    added = {entry["id"]: entry["content"] for entry in content.get("added_tokens", ())}
    found = [b""] * (max([*vocabulary.values(), *added]) + 1)
    for text, number in vocabulary.items():
        if byte_level and all(character in alphabet for character in text):
            found[number] = bytes(alphabet[character] for character in text)
        elif len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            found[number] = bytes([int(text[3:5], 16)])
        else:
            found[number] = text.replace("\u2581", " ").encode()
    for number, text in added.items():
        found[number] = text.encode()
    return tuple(found)
