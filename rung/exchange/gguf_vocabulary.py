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
    """What goes under tokenizer.ggml: model, pre ("" = none), tokens, kinds, scores or merges."""

    model: str
    pre: str
    tokens: list[str]
    kinds: list[int]
    scores: list[float]
    merges: list[str]
    add_space_prefix: bool


def gguf_vocabulary(bpe: Tokenizer, *, rows: int) -> GGUFVocabulary:
    """The vocabulary in `rows` entries, one a row of the embedding.

    ArtefactError names what llama.cpp has no form for.
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
        return GGUFVocabulary(
            "llama", "", tokens, kinds, _scores(tokens, merges), merges, _space_prefix(content)
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


def _space_prefix(content: dict[str, Any]) -> bool:
    """Whether a text is encoded as if a space stood before it."""
    steps = _steps(content.get("normalizer"), "normalizers")
    if any(step["type"] == "Prepend" for step in steps):
        return True
    cuts = _steps(content.get("pre_tokenizer"), "pretokenizers")
    return any(
        step["type"] == "Metaspace" and step.get("prepend_scheme") != "never" for step in cuts
    )


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
