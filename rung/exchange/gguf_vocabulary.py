"""A tokenizer.json as the metadata of a GGUF, or the reason why there is no such thing.

llama.cpp has two kinds of byte-pair vocabularies: of bytes ("gpt2"), which cut text first by a
pattern it knows by name, and sentencepiece's ("llama"), which merge by score.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from rung.errors import ArtefactError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "\u2581"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
Cut = tuple[tuple[Any, ...], ...]
"""A pre-tokenizer: its steps, each a name and what sets it apart."""
_CUTS: dict[Cut, str] = {
    (("Split", _LLAMA3), ("ByteLevel", False)): "llama-bpe",
    (("Split", _QWEN2), ("ByteLevel", False)): "qwen2",
    (("ByteLevel", True),): "gpt-2",
    (("Digits", True), ("ByteLevel", True)): "smollm",
}


@dataclass(frozen=True)
class GGUFVocabulary:
    """What goes under tokenizer.ggml: model, pre ("" = none), tokens, kinds, scores or merges.

    lines: where llama.cpp will not do as the tokenizer does, in sentences for the user.
    """

    model: str
    pre: str
    tokens: list[str]
    kinds: list[int]
    scores: list[float]
    merges: list[str]
    add_space_prefix: bool
    lines: tuple[str, ...] = ()


def gguf_vocabulary(bpe: Tokenizer, *, rows: int, begins: bool) -> GGUFVocabulary:
    """The vocabulary in `rows` entries, one a row of the embedding.

    begins: whether a conversation begins with a special token. ArtefactError names what llama.cpp
    has no form for.
    """
    content = json.loads(bpe.to_str())
    model = content["model"]
    if model.get("type") != "BPE":
        raise ArtefactError(
            f"llama.cpp's llama architecture has no vocabulary of type {model.get('type')}; "
            "use --to hf"
        )
    tokens, kinds = _entries(content, rows)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    if model.get("byte_fallback"):
        prefix, lines = _space_prefix(content, begins)
        if without := sum(not can_spell(content, bytes([b])) for b in range(256)):
            lines += (
                f"no token for {without} of the 256 bytes: llama.cpp ends the whole process on a "
                "text with a character that is not in the vocabulary; serve it with Rung instead, "
                "or keep such text away",
            )
        return GGUFVocabulary(
            "llama", "", tokens, kinds, _scores(tokens, merges), merges, prefix, lines
        )
    return GGUFVocabulary("gpt2", _cut_name(content), tokens, kinds, [], merges, False)


def _entries(content: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Texts and kinds by id; rows without a token are called unused."""
    tokens = [f"[PAD{index}]" for index in range(rows)]
    kinds = [UNUSED] * rows
    for text, index in content["model"]["vocab"].items():
        tokens[index] = text
        kinds[index] = BYTE if _BYTE.fullmatch(text) else NORMAL
    for added in content["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    unknown = content["model"].get("unk_token")
    if unknown is not None and unknown in tokens:
        kinds[tokens.index(unknown)] = UNKNOWN
    return tokens, kinds


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """Minus the rank of the first merge that makes a token: the best score is merged first."""
    rank: dict[str, int] = {}
    for index, merge in enumerate(merges):
        rank.setdefault(merge.replace(" ", ""), index)
    return [-float(rank.get(token, len(merges))) for token in tokens]


def mark_of_space(content: dict[str, Any]) -> str:
    """Where a tokenizer.json puts a space before text: "every" stretch between special tokens,
    "always" (the same, unless there is one), "first" (at the beginning of a text) or "never"."""
    steps = _steps(content.get("normalizer"), "normalizers")
    if any(step["type"] == "Prepend" for step in steps):
        return "every"
    for step in _steps(content.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] == "Metaspace":
            return str(step.get("prepend_scheme", "always"))
    return "never"


def can_spell(content: dict[str, Any], text: str | bytes) -> bool:
    """Whether a sentencepiece vocabulary has tokens for every character of a text, or bytes."""
    known = content["model"]["vocab"]
    if isinstance(text, bytes):
        return all(f"<0x{byte:02X}>" in known for byte in text)
    characters = text.replace(" ", _SPACE)
    return all(c in known or can_spell(content, c.encode("utf-8")) for c in characters)


def _space_prefix(content: dict[str, Any], begins: bool) -> tuple[bool, tuple[str, ...]]:
    """(llama.cpp's add_space_prefix: before every stretch of text, or nowhere; what that means)."""
    extra = "llama.cpp: a text that begins with a space gets one more than was trained"
    match mark_of_space(content):
        case "first" if begins:
            # what follows a special token is most of a conversation, and it has no space there
            return False, (
                "llama.cpp: conversations have the trained ids; a plain text wants a space before "
                "its first word, which this vocabulary writes by itself and llama.cpp will not",
            )
        case "first":
            after = "llama.cpp: text after a special token gets a space that was not trained"
            return True, (extra, after)
        case "always":
            return True, (extra,)
        case mark:
            return mark == "every", ()


def _steps(part: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    return part[inner] if part["type"] == "Sequence" else [part]


def _cut_name(content: dict[str, Any]) -> str:
    """llama.cpp's name for how this vocabulary cuts text."""
    found: list[tuple[Any, ...]] = []
    for step in _steps(content.get("pre_tokenizer"), "pretokenizers"):
        match step["type"]:
            case "Split":
                pattern = step["pattern"].get("Regex", step["pattern"].get("String"))
                found.append(("Split", pattern))
            case "ByteLevel" if not step.get("add_prefix_space"):
                found.append(("ByteLevel", step.get("use_regex", True)))
            case "Digits":
                found.append(("Digits", step["individual_digits"]))
            case other:
                found.append((other,))
    name = _CUTS.get(tuple(found))
    normalised = [s["type"] for s in _steps(content.get("normalizer"), "normalizers")]
    if name is None or set(normalised) - {"NFC"}:
        raise ArtefactError(
            "llama.cpp has no name for how this tokenizer cuts text into words "
            f"({json.dumps(found)}), so it would give other ids; it knows those of Llama 3, Qwen 2 "
            "and 3, GPT-2, SmolLM and Rung: use --to hf"
        )
    if name == "llama-bpe" and not content["model"].get("ignore_merges"):
        return "smaug-bpe"  # the same pattern; "llama-bpe" takes whole words past the merges
    return name
