"""The tokenizer: text to ids and back, and the stage that trains one."""

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers
from pydantic import Field

import rung.config
from rung.errors import ArtefactError, DataError
from rung.store.context import Notes, StageContext
from rung.tokens.bpe import MIN_VOCAB, train_bpe, write_tokenizer
from rung.tokens.documents import choose_rows, read_rows, text_sizes
from rung.tokens.special import BOS, END, PAD, ROLES, SPECIAL_TOKENS

FILES = ("tokenizer.json", "tokenizer_config.json")
ENCODE_CHUNK = 1024


class Tokenizer:
    """Text to ids and back. Text never becomes a special token, whatever a user types in it.

    bos, pad, end: ids (see rung/tokens/special.py). roles: role -> id of its token.
    stop_ids: what ends a generation, `end` for a chat and `bos` for a base model.
    """

    def __init__(self, bpe: tokenizers.Tokenizer, files: dict[str, bytes]) -> None:
        # "<|end|>" in a user's message is six ordinary tokens or so; only ids make a special one.
        bpe.encode_special_tokens = True
        self._bpe = bpe
        self._files = files
        ids: dict[str, int] = {token: _id(bpe, token) for token in SPECIAL_TOKENS}
        self.bos: int = ids[BOS]
        self.pad: int = ids[PAD]
        self.end: int = ids[END]
        self.roles: dict[str, int] = {role: ids[token] for role, token in ROLES.items()}
        self.stop_ids: tuple[int, int] = (self.end, self.bos)
        self.special_ids: frozenset[int] = frozenset(ids.values())

    @cached_property
    def vocab_size(self) -> int:
        return self._bpe.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, int32 [n], no special token among them; decode gives `text` back."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of many texts, on all cores."""
        try:
            encodings = self._bpe.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            for text in texts:
                check_unicode(text)
            raise
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of `ids`; special tokens are left out, or written by name with `special`.

        Bytes that are no UTF-8 (a character cut in half) become U+FFFD.
        """
        return self._bpe.decode([int(i) for i in ids], skip_special_tokens=not special)

    def save_into(self, folder: Path) -> None:
        """The tokenizer's files, byte for byte as they were read: a model carries its tokenizer."""
        for name, content in self._files.items():
            (folder / name).write_bytes(content)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a tokenizer or model folder; ArtefactError when it is not one of Rung's."""
    folder = Path(folder)
    files: dict[str, bytes] = {}
    for name in FILES:
        try:
            files[name] = (folder / name).read_bytes()
        except FileNotFoundError:
            raise ArtefactError(f"{folder} has no {name}; it holds no tokenizer") from None
    try:
        bpe = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode("utf-8"))
    except Exception as error:  # the library raises plain Exception for every malformed file
        raise ArtefactError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from None
    missing = [token for token in SPECIAL_TOKENS if bpe.token_to_id(token) is None]
    if missing:
        raise ArtefactError(
            f"the tokenizer in {folder} lacks {', '.join(missing)}; "
            "Rung needs these tokens: train one with rung tokenizer"
        )
    return Tokenizer(bpe, files)


def _id(bpe: tokenizers.Tokenizer, token: str) -> int:
    index = bpe.token_to_id(token)
    assert index is not None, f"load_tokenizer lets no vocabulary without {token} through"
    return index


def check_unicode(text: str) -> None:
    """DataError for a text with half a character, which no file can hold and no token spell."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        before = text[max(0, error.start - 20) : error.start]
        raise DataError(
            f"text has half a character (surrogate U+{ord(text[error.start]):04X}) at position "
            f"{error.start}, after {before!r}; it was decoded wrongly before it came here: read "
            "the source as UTF-8, or drop that character"
        ) from None


class Config(rung.config.Config):
    """How a tokenizer is trained."""

    vocab_size: int = Field(
        4096, ge=MIN_VOCAB, le=1_000_000, description="entries, special tokens included"
    )
    max_bytes: int = Field(
        50_000_000, ge=0, description="bytes of training text, documents drawn at random; 0 = all"
    )
    heldout_bytes: int = Field(
        5_000_000, ge=0, description="bytes of held-out text to measure on, per corpus; 0 = all"
    )
    seed: int = Field(0, ge=0, description="of the draw of documents")


def run(context: StageContext, config: Config) -> Notes:
    """Train on the train split of every corpus, measure on the held-out split."""
    paths = [corpus.file("documents.parquet") for corpus in context.many["corpora"]]
    context.progress.start("tokenizer", total=3, unit="steps")
    sizes = [text_sizes(path, split="train") for path in paths]
    all_sizes = np.concatenate(sizes)
    if not all_sizes.sum():
        raise DataError(
            "the corpora have no training text (no row with split 'train' and a text); "
            "give curate more text or a smaller held-out share"
        )
    chosen = choose_rows(all_sizes, max_bytes=config.max_bytes, seed=config.seed)
    context.progress.update(1)
    masks = np.split(chosen, np.cumsum([len(s) for s in sizes])[:-1])
    texts = (
        text
        for path, mask in zip(paths, masks, strict=True)
        for _, text in _chosen_texts(path, split="train", mask=mask)
    )
    bpe = train_bpe(texts, vocab_size=config.vocab_size)
    write_tokenizer(bpe, context.out)
    context.progress.update(2)

    tokenizer = load_tokenizer(context.out)
    report = {
        "vocab_size": tokenizer.vocab_size,
        "requested_vocab_size": config.vocab_size,
        "num_merges": tokenizer.vocab_size - MIN_VOCAB,
        "special_tokens": {token: bpe.token_to_id(token) for token in SPECIAL_TOKENS},
        "train": {
            "documents": int(chosen.sum()),
            "bytes": int(all_sizes[chosen].sum()),
            "documents_available": len(all_sizes),
            "bytes_available": int(all_sizes.sum()),
        },
        "heldout": measure(tokenizer, paths, max_bytes=config.heldout_bytes, seed=config.seed),
    }
    (context.out / "report.json").write_text(
        json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
    context.progress.update(3)
    context.progress.finish()
    return _notes(context, report)


def measure(
    tokenizer: Tokenizer, paths: Sequence[Path], *, max_bytes: int, seed: int
) -> dict[str, dict[str, float]]:
    """Held-out documents, bytes, tokens and bytes per token by domain, and of "all" together."""
    totals: dict[str, list[int]] = {}
    for path in paths:
        mask = choose_rows(text_sizes(path, split="heldout"), max_bytes=max_bytes, seed=seed)
        rows = list(_chosen_texts(path, split="heldout", mask=mask))
        for start in range(0, len(rows), ENCODE_CHUNK):
            chunk = rows[start : start + ENCODE_CHUNK]
            encoded = tokenizer.encode_batch([text for _, text in chunk])
            for (domain, text), ids in zip(chunk, encoded, strict=True):
                for name in (domain, "all"):
                    total = totals.setdefault(name, [0, 0, 0])
                    total[0] += 1
                    total[1] += len(text.encode("utf-8"))
                    total[2] += len(ids)
    return {
        name: {
            "documents": documents,
            "bytes": num_bytes,
            "tokens": tokens,
            "bytes_per_token": round(num_bytes / max(tokens, 1), 4),
        }
        for name, (documents, num_bytes, tokens) in sorted(totals.items())
    }


def _chosen_texts(path: Path, *, split: str, mask: np.ndarray) -> Iterator[tuple[str, str]]:
    """(domain, text) of the rows of `split` where `mask` is true."""
    at = 0
    for batch in read_rows(path, split=split, columns=("text", "domain")):
        keep = np.flatnonzero(mask[at : at + batch.num_rows])
        at += batch.num_rows
        batch = batch.take(keep)
        yield from zip(
            batch.column("domain").to_pylist(), batch.column("text").to_pylist(), strict=True
        )


def _notes(context: StageContext, report: dict) -> Notes:
    say = context.progress.say
    size, asked = report["vocab_size"], report["requested_vocab_size"]
    if size < asked:
        say(
            f"vocabulary of {size:,} entries instead of {asked:,}: {report['train']['bytes']:,} "
            "bytes of text repeat no more pairs; more text, or a smaller vocab_size, is needed"
        )
    heldout = report["heldout"].get("all")
    if heldout is None:
        say("no held-out text in the corpora: bytes per token is not measured")
    else:
        say(f"held-out text: {heldout['bytes_per_token']:.2f} bytes per token, vocabulary {size:,}")
    return {
        "figures": {
            "vocab_size": size,
            "bytes_per_token": heldout["bytes_per_token"] if heldout else None,
        },
        "counts": report["train"],
    }
