"""The tokenizer of a foreign model, written down so that every reader gives the same ids."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from rung.errors import ArtefactError, DataError, first_line
from rung.exchange.fallback import fallback_template
from rung.tokens.tokenizer import load_tokenizer

NAMED = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tekken.json"),
    *("sentencepiece.bpe.model", "vocab.txt"),
)
# Cases in which tokenizers differ: spaces, digits, case, other scripts, controls, code.
PROBES = (
    "Hello world",
    " Once upon  a time, 1234 people's cars...\n\n\tdef f(x):\n        return x**2  # why?",
    "na\u00efve \u4e2d\u6587 \U0001f642 \u0416\u0438\u0432\u043e\u0442\u043d\u043e\u0435\r\nA",
    "trailing space ",
)


class Vocabulary:
    """A tokenizer as a fast one: bpe, the tokens with a name (`bos_token` ...), the chat template
    ("" = none)."""

    def __init__(self, bpe: Tokenizer, named: Mapping[str, str], template: str) -> None:
        bpe.no_padding()
        bpe.no_truncation()
        self.bpe = bpe
        self.named = {key: token for key, token in named.items() if token}
        self.template = template

    @property
    def num_ids(self) -> int:
        """One more than the largest id."""
        return max(self.bpe.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def write(self, folder: Path) -> str:
        """tokenizer.json and tokenizer_config.json; whose chat template it has, in words."""
        template, origin = self.template, "its own"
        if not template:
            template, origin = fallback_template(self.bpe, self.named)
        config: dict[str, Any] = {
            # The one name that transformers 4 and 5 both resolve to "tokenizer.json as it stands".
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "padding_side": "left",
            "chat_template": template,
            **self.named,
        }
        _write(folder / "tokenizer.json", self.bpe.to_str() + "\n")
        _write(
            folder / "tokenizer_config.json",
            json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n",
        )
        self._check(folder)
        return origin

    def _check(self, folder: Path) -> None:
        """What was written must give the ids of what was read, in Rung's reader, too."""
        written = load_tokenizer(folder)
        self.bpe.encode_special_tokens = True
        for text in PROBES:
            expected = self.bpe.encode(text, add_special_tokens=False).ids
            assert written.encode(text).tolist() == expected, text
        self.bpe.encode_special_tokens = False


def template_problem(folder: Path) -> str:
    """Why the chat template of `folder` cannot write a question and its answer; "" if it can."""
    try:
        load_tokenizer(folder).chat.layout(("user", "assistant"), generation_prompt=False)
    except DataError as error:
        return str(error)
    return ""


def read_template(folder: Path) -> str:
    """The chat template of a model folder as Jinja, "" where there is none."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = config.get("chat_template") or ""
    if isinstance(template, list):
        template = {one["name"]: one["template"] for one in template}.get("default", "")
    return str(template)


def check_has_tokenizer(folder: Path) -> None:
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ArtefactError(
            f"{folder} has no tokenizer (tokenizer.json or tokenizer.model): without the very one "
            "it was trained with a model reads noise; copy its tokenizer files into the folder"
        )


def read_vocabulary(folder: Path, *, gguf_file: str | None = None) -> Vocabulary:
    """The tokenizer of a folder or of a GGUF in it, as transformers reads it.

    A sentencepiece model becomes a fast tokenizer. ArtefactError: there is none, it is code, or it
    has no fast form.
    """
    from transformers import AutoTokenizer

    options = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, **options
        )
    except Exception as error:  # tokenizers raises plain Exception, readers of old formats others
        raise ArtefactError(
            f"{folder}: transformers cannot read the tokenizer: {first_line(error)}"
        ) from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ArtefactError(
            f"{folder}: its tokenizer ({type(tokenizer).__name__}) has no tokenizer.json form, "
            "which Rung needs; convert it with its makers' tools"
        )
    template = tokenizer.chat_template or ""
    if isinstance(template, dict):  # several, by name
        template = template.get("default", "")
    named = {key: getattr(tokenizer, key, None) for key in NAMED}
    return Vocabulary(backend, {k: str(v) for k, v in named.items() if v}, template)


def check_fits(vocabulary: Vocabulary, rows: int, *, where: Path) -> None:
    """ArtefactError when a token would have no row in an embedding of `rows` rows, or none ends a
    text."""
    if not vocabulary.named.get("eos_token"):
        raise ArtefactError(
            f"{where}: the tokenizer names no end token (eos_token in tokenizer_config.json): a "
            "model trained with it could not stop; name one"
        )
    if vocabulary.num_ids > rows:
        raise ArtefactError(
            f"{where}: the tokenizer has ids up to {vocabulary.num_ids - 1:,} and the embedding "
            f"{rows:,} rows: it is the tokenizer of another model, or tokens were added to it and "
            "the model was not resized; use the model's own tokenizer"
        )


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
