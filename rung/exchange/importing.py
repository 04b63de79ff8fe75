"""Stage `import`: a model from elsewhere becomes an artefact like any other."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from rung.config import Config as BaseConfig
from rung.errors import ArtefactError, first_line
from rung.exchange.architecture import (
    check_architecture,
    check_folder,
    check_packing,
    stored_dtype,
)
from rung.exchange.gguf_read import (
    check_gguf,
    read_gguf_model,
    read_gguf_vocabulary,
    stored_kind,
)
from rung.exchange.llama2c import find_tokenizer, read_header, read_model, read_tokenizer
from rung.exchange.source import Source, locate
from rung.exchange.vocabulary import (
    Vocabulary,
    check_fits,
    read_vocabulary,
    template_problem,
)
from rung.model.load import context_length, load_model, save_model, stop_ids
from rung.model.types import PreTrainedModel
from rung.store.artefact import canonical_json
from rung.store.context import Notes, StageContext
from rung.store.durable import hash_file
from rung.tokens.tokenizer import Tokenizer, load_tokenizer

RECORD = "source.json"


class Config(BaseConfig):
    """Where a model comes from."""

    source: str = Field(
        "", description="model folder, .gguf or llama2.c file, or a hub id such as owner/name"
    )
    revision: str = Field("main", description="branch, tag or commit of a hub id")
    tokenizer: str | None = Field(
        None, description="of a llama2.c file: its tokenizer .bin; None looks beside the model"
    )


@dataclass(frozen=True)
class Read:
    """A model and its vocabulary in memory. dtype: what its weights lose nothing in."""

    model: PreTrainedModel
    vocabulary: Vocabulary
    dtype: torch.dtype


def fingerprint(config: Config) -> Any:
    """Sizes and times of the files; of a hub id its name and revision (a plan asks no network)."""
    path = Path(config.source).expanduser()
    if not config.source or not path.exists():
        return {"hub": config.source, "revision": config.revision}
    files = locate(config.source, revision=config.revision).files()
    files += [Path(config.tokenizer)] if config.tokenizer else []
    stats = [(f, f.stat()) for f in files if f.is_file()]
    return [[f.name, stat.st_size, stat.st_mtime_ns] for f, stat in stats]


def run(context: StageContext, config: Config) -> Notes:
    """The model normalised (`save_model`), its tokenizer and chat template, and source.json with
    the sha256 of every file that was read.

    Everything that can be refused without the weights is refused before they are read.
    """
    progress = context.progress
    progress.start("import", total=3, unit="steps")
    source = locate(config.source, revision=config.revision)
    read = _READERS[source.form](source, config)
    progress.update(1)
    model = read.model
    origin = read.vocabulary.write(context.out)
    _stop_at_turn_end(model, load_tokenizer(context.out))
    save_model(model, context.out, dtype=read.dtype)
    progress.update(2)
    gap = check_packing(load_model(context.out, dtype=read.dtype))
    tokenizer = load_tokenizer(context.out)
    record = _record(source, config, origin)
    (context.out / RECORD).write_text(canonical_json(record) + "\n", encoding="utf-8")
    facts = _facts(model, tokenizer, read)
    progress.update(3)
    progress.finish()
    problem, padded = template_problem(context.out), "pad_token" in read.vocabulary.named
    for line in describe(facts, tokenizer, origin, problem, padded=padded):
        progress.say(f"import: {line}")
    return {
        "figures": {**facts, "packing_gap": gap},
        "counts": {"files": len(record["files"])},
        "hub": bool(source.commit),
    }


def _read_folder(source: Source, config: Config) -> Read:
    check_folder(source.path)
    vocabulary = read_vocabulary(source.path)
    check_fits(vocabulary, _embedding_rows(source.path), where=source.path)
    dtype = stored_dtype(source.path)
    return Read(load_model(source.path, dtype=dtype), vocabulary, dtype)


def _embedding_rows(folder: Path) -> int:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        return int(config.vocab_size)
    except Exception as error:  # a config of wrong types fails in many ways
        raise ArtefactError(
            f"{folder}: transformers cannot read config.json: {first_line(error)}"
        ) from error


def _read_gguf(source: Source, config: Config) -> Read:
    header = check_gguf(source.path)
    vocabulary = read_gguf_vocabulary(source.path, header)
    model = read_gguf_model(source.path, header)
    check_architecture(model.config.to_dict(), where=source.path)
    check_fits(vocabulary, model.get_input_embeddings().weight.shape[0], where=source.path)
    return Read(model, vocabulary, getattr(torch, stored_kind(header)))


def _read_llama2c(source: Source, config: Config) -> Read:
    header = read_header(source.path)
    path = find_tokenizer(source.path, config.tokenizer)
    bpe, named = read_tokenizer(path, header.vocab)
    return Read(read_model(source.path), Vocabulary(bpe, named, ""), torch.float32)


_READERS = {"transformers": _read_folder, "gguf": _read_gguf, "llama2.c": _read_llama2c}


def _stop_at_turn_end(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Let the generation config name the token that ends an answer, too: other programs stop by
    it. Begin and pad tokens are taken from the tokenizer where the model does not say."""
    from transformers import GenerationConfig

    if model.generation_config is None:
        model.generation_config = GenerationConfig.from_model_config(model.config)
    config: Any = model.generation_config
    ends = [*stop_ids(model), *tokenizer.stop_ids[:1]]
    config.eos_token_id = list(dict.fromkeys(ends))
    if config.bos_token_id is None:
        config.bos_token_id = tokenizer.bos


def _record(source: Source, config: Config, origin: str) -> dict[str, Any]:
    files = source.files()
    if source.form == "llama2.c":
        files = [*files, find_tokenizer(source.path, config.tokenizer)]
    return {
        "source": config.source,
        "form": source.form,
        "commit": source.commit,
        "chat_template": origin,
        "files": {path.name: hash_file(path).sha256 for path in files},
    }


def _facts(model: PreTrainedModel, tokenizer: Tokenizer, read: Read) -> dict[str, Any]:
    return {
        "architecture": type(model).__name__,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "context": context_length(model),
        "vocab_size": int(model.get_input_embeddings().weight.shape[0]),
        "num_tokens": tokenizer.vocab_size,
        "dtype": str(read.dtype).removeprefix("torch."),
    }


def describe(
    facts: dict[str, Any], tokenizer: Tokenizer, origin: str, problem: str, *, padded: bool
) -> list[str]:
    """What a user should know of an imported model, in sentences. padded: it names a pad token."""

    def name(token: int) -> str:
        return f"{tokenizer.decode([token], special=True)} ({token})"

    lines = [
        f"{facts['architecture']}, {facts['num_parameters'] / 1e6:,.1f} M parameters, context "
        f"{facts['context']:,}, {facts['dtype']}",
        f"vocabulary of {facts['num_tokens']:,} tokens"
        + (
            f", embedding of {facts['vocab_size']:,} rows"
            if facts["vocab_size"] != facts["num_tokens"]
            else ""
        ),
        f"chat template: {origin}" + (f"; it cannot be used: {problem}" if problem else ""),
        f"a text begins with {name(tokenizer.bos)}; generation stops at "
        + ", ".join(name(i) for i in tokenizer.stop_ids),
    ]
    if not padded:
        lines.append("no pad token, and Rung needs none: nothing is padded")
    elif tokenizer.pad in tokenizer.stop_ids:
        lines.append(
            f"pad token = end token, {name(tokenizer.pad)}: Rung pads nothing and always trains "
            "the end; programs that hide pad tokens from the loss would unlearn stopping"
        )
    return lines
