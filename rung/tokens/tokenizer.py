"""The tokenizer: text to ids and back, and the stage that trains one."""

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from pydantic import Field

import rung.config
from rung.errors import ArtefactError, DataError
from rung.store.context import Notes, StageContext
from rung.tokens.bpe import MIN_VOCAB, train_bpe, write_tokenizer
from rung.tokens.documents import choose_rows, read_rows, text_sizes
from rung.tokens.special import BOS, SPECIAL_TOKENS
from rung.tokens.template import ChatTemplate

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""What a folder may hold of a tokenizer; only the first is needed."""
ENCODE_CHUNK = 1024
# What ends a document in the usual vocabularies, where the end token of a chat says another thing.
_DOCUMENT_ENDS = (BOS, "<|end_of_text|>", "</s>", "<eos>")
_NAMED = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token")


class Tokenizer:
    """Text to ids and back. Text never becomes a special token, whatever a user types in it.

    bos: begins every piece of text (input only). document_end: ends a document. pad: fills up.
    stop_ids: what ends a generation, the end of an answer first, then the end of a document.
    """

    def __init__(
        self, bpe: tokenizers.Tokenizer, files: dict[str, bytes], more_stops: Sequence[int] = ()
    ) -> None:
        bpe.no_padding()
        bpe.no_truncation()
        # "<|end|>" in a user's message is six ordinary tokens or so; only ids make a special one.
        bpe.encode_special_tokens = True
        self._bpe = bpe
        self._files = files
        self._config: dict[str, Any] = json.loads(files.get("tokenizer_config.json", b"{}"))
        self._added = {i: t for i, t in bpe.get_added_tokens_decoder().items() if t.special}
        self._ids = {str(token): index for index, token in self._added.items()}
        self.special_ids: frozenset[int] = frozenset(self._added)
        named = {key: self._named(key) for key in _NAMED}
        self._names = {key: token for key, token in named.items() if token}
        ends = [t for t in (*_DOCUMENT_ENDS, named["eos_token"]) if t in self._ids]
        if not ends:
            raise ArtefactError(
                "the tokenizer names no token that ends a text (eos_token in tokenizer_config.json)"
                ": a model trained with it could not stop; name one"
            )
        self.document_end: int = self._ids[ends[0]]
        begins = self._begins_with()
        self.bos: int = self.document_end if begins is None else begins
        self.pad: int = self._ids.get(named["pad_token"], self.document_end)
        turn_end = self._turn_end() or named["eos_token"]
        stops = [self._ids.get(turn_end, self.document_end), self.document_end, *more_stops]
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(stops))

    def _named(self, key: str) -> str:
        """A token that tokenizer_config.json names, written as text or as an object."""
        value = self._config.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        return value if isinstance(value, str) else ""

    def _begins_with(self) -> int | None:
        """The id that other programs put before a plain text; None when they put none."""
        with_added = self._bpe.encode("a").ids
        first = with_added[0]
        return first if first in self.special_ids and len(with_added) > 1 else None

    def _turn_end(self) -> str:
        """The special token that ends an answer in the chat template, "" where there is none."""
        if not self._template_source():
            return ""
        try:
            layout = self.chat.layout(("user", "assistant"), generation_prompt=False)
        except DataError:  # reported when a conversation is written: text needs no template
            return ""
        return layout.items[-1].special

    def _template_source(self) -> str:
        source = self._files.get("chat_template.jinja", b"").decode("utf-8")
        source = source or self._config.get("chat_template") or ""
        if isinstance(source, list):  # several, by name
            named = {entry["name"]: entry["template"] for entry in source}
            source = named.get("default", "")
        return source

    @cached_property
    def vocab_size(self) -> int:
        return self._bpe.get_vocab_size(with_added_tokens=True)

    @cached_property
    def chat(self) -> ChatTemplate:
        """The chat template; DataError where the tokenizer has none."""
        if not (source := self._template_source()):
            raise DataError(
                "the tokenizer has no chat template, so there is no way to write a conversation; "
                "import the model again, which gives it one, or put a chat_template into "
                "tokenizer_config.json"
            )
        return ChatTemplate(source, names=self._names, specials=list(self._ids))

    def special(self, name: str) -> int:
        """The id of a special token."""
        return self._ids[name]

    def special_id(self, text: str) -> int | None:
        """The id of the special token that `text` names; None where it names none."""
        return self._ids.get(text)

    @property
    def named_tokens(self) -> dict[str, str]:
        """What the configuration names: {"bos_token": "<|endoftext|>", ...}."""
        return dict(self._names)

    @property
    def chat_template(self) -> str:
        """The source of the chat template, "" where there is none."""
        return self._template_source()

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

    def encode_parts(self, parts: Sequence[tuple[str | None, str]]) -> list[np.ndarray]:
        """Ids of texts that follow something: (None at the beginning of a text, "" within a text,
        or the name of the special token before; text).

        Some vocabularies write a space before the first word of a text, or swallow white space
        after a special token: there a text is encoded behind what it follows.
        """
        if not self._minds_context:
            return self.encode_batch([text for _, text in parts])
        return [self._encode_after(before, text) for before, text in parts]

    @cached_property
    def _minds_context(self) -> bool:
        first = self._bpe.encode("a", add_special_tokens=False).tokens
        return first != ["a"] or any(t.rstrip for t in self._added.values())

    def _encode_after(self, before: str | None, text: str) -> np.ndarray:
        if before is None or not text:
            return self.encode(text)
        if before and not any(name in text for name in self._ids):
            self._bpe.encode_special_tokens = False
            ids = self._bpe.encode(before + text, add_special_tokens=False).ids
            self._bpe.encode_special_tokens = True
            if ids and ids[0] == self._ids[before]:
                return np.array(ids[1:], dtype=np.int32)
        # A line break seldom joins what follows it, so it can stand for any text before.
        head, joined = self.encode("\n"), self.encode("\n" + text)
        if np.array_equal(joined[: len(head)], head):
            return joined[len(head) :]
        return self.encode(text)

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of `ids`; special tokens are left out, or written by name with `special`.

        Bytes that are no UTF-8 (a character cut in half) become U+FFFD.
        """
        return self._bpe.decode([int(i) for i in ids], skip_special_tokens=not special)

    def to_json(self) -> str:
        """tokenizer.json as text, for other programs' readers; neither padding nor truncation."""
        return self._bpe.to_str()

    def save_into(self, folder: Path) -> None:
        """The tokenizer's files, byte for byte as they were read: a model carries its tokenizer."""
        for name, content in self._files.items():
            (folder / name).write_bytes(content)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a tokenizer or model folder, Rung's own or any in Hugging Face's layout.

    ArtefactError when there is none, or it cannot be read.
    """
    folder = Path(folder)
    files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
    if FILES[0] not in files:
        raise ArtefactError(f"{folder} has no {FILES[0]}; it holds no tokenizer")
    try:
        bpe = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode("utf-8"))
        return Tokenizer(bpe, files, _model_stops(folder))
    except ArtefactError as error:
        raise ArtefactError(f"{folder}: {error}") from None
    except Exception as error:  # the library raises plain Exception for every malformed file
        raise ArtefactError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from None


def _model_stops(folder: Path) -> list[int]:
    """Ids that the model beside the tokenizer stops at, as its generation config says."""
    try:
        config = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    ids = config.get("eos_token_id") if isinstance(config, dict) else None
    return [ids] if isinstance(ids, int) else [int(i) for i in ids or []]


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
