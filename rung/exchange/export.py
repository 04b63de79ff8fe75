"""Out of Rung: a Hugging Face folder, a GGUF file, or peft's adapter folder, with a model card."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rung.config import did_you_mean
from rung.errors import ArtefactError, ConfigError
from rung.exchange.card import write_card
from rung.exchange.gguf_write import TYPES, check_exportable, write_gguf
from rung.model.load import load_model, save_model
from rung.store.adapter import CONFIG_FILE, WEIGHTS_FILE, base_id
from rung.store.artefact import Artefact
from rung.store.store import Store
from rung.tokens.tokenizer import load_tokenizer

FORMS = ("hf", "gguf", "adapter")
HF_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_WHOLE = ("config.json", "generation_config.json", "model.safetensors")


@dataclass(frozen=True)
class Export:
    """What was written. dtype: "" = as in the store. base: what an adapter's config names."""

    folder: Path
    to: str
    dtype: str
    base: str = ""
    lines: list[str] = field(default_factory=list)

    @property
    def gguf(self) -> Path:
        return next(self.folder.glob("*.gguf"))


def export(
    store: Store,
    artefact: Artefact,
    *,
    to: str,
    out: Path,
    dtype: str | None = None,
    base: str | None = None,
    name: str = "model",
) -> Export:
    """Write the model `artefact` into the new folder `out`: whole, or not at all.

    ConfigError, ArtefactError before anything is written: no model, an unknown form or type, an
    architecture that GGUF has not, no adapter, a folder that is not empty.
    """
    _check(artefact, to=to, out=out, dtype=dtype, base=base)
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        done = _WRITERS[to](store, artefact, part, dtype or "", base, name)
        write_card(store, artefact, part, title=name, form=to, base=done.base)
        if out.exists():
            out.rmdir()
        part.rename(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    said = [f"{path.name:<28} {path.stat().st_size:>13,} bytes" for path in sorted(out.iterdir())]
    closing = f"{out}: fill in the licence in README.md before you share it"
    return Export(out, to, done.dtype, done.base, [*said, *done.lines, closing])


def _check(artefact: Artefact, *, to: str, out: Path, dtype: str | None, base: str | None) -> None:
    if to not in FORMS:
        raise ConfigError(f"--to {to!r}: it is one of {', '.join(FORMS)}")
    if artefact.kind != "model":
        raise ArtefactError(
            f"{artefact.short_id} is a {artefact.kind}, not a model: only models are exported"
        )
    known = {"hf": list(HF_DTYPES), "gguf": list(TYPES), "adapter": []}[to]
    if dtype is not None and dtype not in known:
        raise ConfigError(f"--dtype {dtype!r} with --to {to}{did_you_mean(dtype, known)}")
    if base is not None and to != "adapter":
        raise ConfigError(f"--base is for --to adapter; --to {to} needs no base")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ArtefactError(f"{out} is there already and not empty: name another folder")
    if to == "adapter" and base_id(artefact.path) is None:
        raise ArtefactError(
            f"{artefact.short_id} is a whole model, there is no adapter in it: use --to hf"
        )


def _hf(
    store: Store, artefact: Artefact, part: Path, dtype: str, base: str | None, name: str
) -> Export:
    folder = artefact.path
    plain = base_id(folder) is None
    if plain and not dtype:
        for file in _WHOLE:
            shutil.copyfile(artefact.file(file), part / file)
    else:
        save_model(load_model(folder), part, dtype=HF_DTYPES[dtype or "f32"])
    load_tokenizer(folder).save_into(part)
    lines = [] if plain else ["the adapter is merged into its base: this is a whole model"]
    return Export(part, "hf", dtype, lines=lines)


def _gguf(
    store: Store, artefact: Artefact, part: Path, dtype: str, base: str | None, name: str
) -> Export:
    check_exportable(_config(store, artefact))
    kind = dtype or "f16"
    short = name.rpartition("/")[2]
    path = part / f"{short}-{kind}.gguf"
    lines = write_gguf(load_model(artefact.path), artefact.path, path, dtype=kind, name=short)
    return Export(part, "gguf", kind, lines=lines)


def _config(store: Store, artefact: Artefact) -> Any:
    """The config of a model, or of the whole model under an adapter."""
    from transformers import AutoConfig

    while (below := base_id(artefact.path)) is not None:
        artefact = store.get(below)
    return AutoConfig.from_pretrained(str(artefact.path), local_files_only=True)


def _adapter(
    store: Store, artefact: Artefact, part: Path, dtype: str, base: str | None, name: str
) -> Export:
    below = store.get(str(base_id(artefact.path)))
    if base_id(below.path) is not None:
        raise ArtefactError(
            f"{artefact.short_id} is an adapter on the adapter {below.short_id}, which other "
            "programs cannot load: use --to hf, or `rung merge` the lower one and train on that"
        )
    named, how = (base, "as you said") if base else _loadable(below)
    config = json.loads(artefact.file(CONFIG_FILE).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = named
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (part / CONFIG_FILE).write_text(text, encoding="utf-8")
    shutil.copyfile(artefact.file(WEIGHTS_FILE), part / WEIGHTS_FILE)
    load_tokenizer(artefact.path).save_into(part)
    names = ", ".join(store.names_of(below)) or "no name"
    lines = [
        f"it needs its base, {below.short_id} ({names}); adapter_config.json names {named} ({how})"
    ]
    return Export(part, "adapter", "", base=named, lines=lines)


def _loadable(base: Artefact) -> tuple[str, str]:
    """What other programs can load the base by, and why that."""
    source = imported_from(base)
    if source and source["commit"]:
        return source["source"], "the hub id it was imported by"
    return str(base.path), "its folder in this store; elsewhere use --base with a hub id or path"


def imported_from(artefact: Artefact) -> dict[str, Any]:
    """source.json of an imported model; {} of any other."""
    if artefact.stage != "import" or "source.json" not in artefact.files:
        return {}
    record: dict[str, Any] = json.loads(artefact.file("source.json").read_text(encoding="utf-8"))
    return record


_WRITERS = {"hf": _hf, "gguf": _gguf, "adapter": _adapter}
