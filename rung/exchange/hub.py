"""Models from the Hugging Face hub: only where the user names one, and never pickles or code."""

import os
from pathlib import Path

from rung.errors import ArtefactError

_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]


def fetch(id: str, *, revision: str) -> tuple[Path, str]:
    """The folder and commit of a model on the hub, from the local cache when nothing changed.

    ArtefactError: no such model, no access, no network, or nothing but pickles there.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    offline = bool(int(os.environ.get("HF_HUB_OFFLINE", "0") or 0))
    try:
        if not offline:
            found = HfApi().model_info(id, revision=revision)
            names = [file.rfilename for file in found.siblings or ()]
            if not any(name.endswith(".safetensors") for name in names):
                raise ArtefactError(_no_safetensors(id, names))
        folder = snapshot_download(
            id, revision=revision, allow_patterns=_FILES, local_files_only=offline
        )
    except HfHubHTTPError as error:
        raise ArtefactError(
            f"{id}: the hub refuses ({type(error).__name__}): check the id, and for a gated model "
            "accept its terms on the hub and log in"
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:
        why = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
        raise ArtefactError(
            f"{id}: no such folder in {Path.cwd()}, and as a hub id it is not in the local cache "
            f"while {why}; go online once, or copy the model here and name its folder"
        ) from error
    return Path(folder), Path(folder).name


def _no_safetensors(id: str, names: list[str]) -> str:
    gguf = [name for name in names if name.endswith(".gguf")]
    if gguf:
        return f"{id} holds GGUF files ({gguf[0]}): download the one you want and import the file"
    return (
        f"{id} has no safetensors, only {', '.join(names[:4])}; weights as pickle can run code "
        "when they are read: look for a revision with safetensors"
    )
