"""Training of a byte-level BPE vocabulary and its Hugging Face files."""

import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers

from rung.tokens.special import BOS, CHAT_TEMPLATE, END, PAD, SPECIAL_TOKENS

# How text is cut before merging. The pattern of Llama 3, character for character: converters to
# other formats recognise it by its behaviour. On Python documentation it gives 6 % more bytes per
# token than GPT-2's, because "_name", ".name" and "(name" stay together.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MIN_VOCAB = 256 + len(SPECIAL_TOKENS)
# Longer tokens are rulers ("-----") and runs of spaces: they cost vocabulary and save nothing.
MAX_TOKEN_CHARS = 16


def train_bpe(texts: Iterable[str], *, vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE of at most `vocab_size` entries; fewer when the text runs out of pairs.

    All 256 bytes are entries and nothing is normalised, so any text survives a round trip.
    The same texts in the same order give the same vocabulary.
    """
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=MAX_TOKEN_CHARS,
    )
    bpe.train_from_iterator(texts, trainer)
    # For other programs only: plain text begins as it did in training. Rung adds ids itself.
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return bpe


def write_tokenizer(bpe: tokenizers.Tokenizer, folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json, as transformers' AutoTokenizer reads them."""
    config = {
        # The one name that transformers 4 and 5 both resolve to "tokenizer.json as it stands".
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer.json").write_text(bpe.to_str() + "\n", encoding="utf-8", newline="\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n"
    )
