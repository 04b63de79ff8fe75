"""Where a model comes from: a folder, a GGUF or llama2.c file, or an id on the Hugging Face hub."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rung.errors import ArtefactError, ConfigError
from rung.exchange.hub import fetch
from rung.exchange.llama2c import looks_like_llama2c

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")
_READ = (".json", ".safetensors", ".jinja", ".model", ".txt", ".gguf")


@dataclass(frozen=True)
class Source:
    """What is imported. path: a folder (transformers), else one file; commit: "" off the hub."""

    form: Literal["transformers", "gguf", "llama2.c"]
    path: Path
    commit: str = ""

    def files(self) -> list[Path]:
        """What an import may read, sorted: the file, or the known files of the folder."""
        if self.path.is_file():
            return [self.path]
        return sorted(p for p in self.path.iterdir() if p.suffix in _READ and p.is_file())


def locate(source: str, *, revision: str) -> Source:
    """What `source` is. A path that exists is never taken for a hub id.

    ArtefactError: nothing is there, or nothing that can be imported.
    """
    if not source:
        raise ConfigError("source is empty; name a folder, a file, or a hub id such as owner/name")
    path = Path(source).expanduser()
    if not path.exists():
        if not _HUB_ID.fullmatch(source):
            raise ArtefactError(
                f"{source}: no such file or folder (in {Path.cwd()}), and no hub id, which is "
                "written owner/name"
            )
        path, commit = fetch(source, revision=revision)
        return Source("transformers", path, commit)
    return _folder(path) if path.is_dir() else _file(path)


def _folder(path: Path) -> Source:
    if (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        return Source("transformers", path)
    singles = [p for p in sorted(path.iterdir()) if _is_single(p)]
    if len(singles) == 1:
        return _file(singles[0])
    if singles:
        names = ", ".join(p.name for p in singles[:6])
        raise ArtefactError(f"{path} holds several models: name one of the files {names}")
    _refuse_pickles(path)
    raise ArtefactError(
        f"{path} has no config.json, no .gguf and no llama2.c file: not a model folder"
    )


def _is_single(path: Path) -> bool:
    return path.is_file() and (_is_gguf(path) or looks_like_llama2c(path))


def _is_gguf(path: Path) -> bool:
    if path.suffix == ".gguf":
        return True
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _file(path: Path) -> Source:
    if _is_gguf(path):
        return Source("gguf", path)
    if path.suffix == ".safetensors" or path.name in ("config.json", "tokenizer.json"):
        raise ArtefactError(f"{path} is one file of a model: name its folder, {path.parent}")
    if looks_like_llama2c(path):
        return Source("llama2.c", path)
    _refuse_pickles(path)
    raise ArtefactError(
        f"{path} is no model that Rung knows: a folder with config.json and *.safetensors, a .gguf "
        "or a llama2.c .bin (whose first numbers are its shape) is expected"
    )


def _refuse_pickles(path: Path) -> None:
    """By magic number as well as by name: zip archives and pickles are what torch.save writes."""
    for file in [path] if path.is_file() else sorted(path.iterdir()):
        if not file.is_file() or file.suffix not in PICKLES:
            continue
        with file.open("rb") as opened:
            start = opened.read(2)
        if start in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
            raise ArtefactError(
                f"{file} is a pickle, which can run code when it is read; convert it to "
                "model.safetensors"
            )
