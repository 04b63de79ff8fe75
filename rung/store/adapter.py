"""What the store knows of an adapter: its files, and the base artefact that they are nothing
without. Weights and arithmetic are rung/model/adapters.py's."""

import json
import re
from pathlib import Path

from rung.errors import ArtefactError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
QUANTISED_FILE = "quantised.json"  # only where the adapter was trained on a base of few bits

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def base_id(folder: Path) -> str | None:
    """Id of the base under the adapter in `folder`; None where no adapter is."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        return None
    try:
        base = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        raise ArtefactError(f"{path} does not name a base_model_name_or_path") from None
    return str(base)


def layers_below(folder: Path) -> list[Path]:
    """`folder`, the base of its adapter, the base of that, ... down to a whole model.

    ArtefactError names the id of a base that is not there.
    """
    found = [folder]
    while (base := base_id(found[-1])) is not None:
        path = folder.parent / base
        if not _ID.fullmatch(base) or not path.is_dir():
            raise ArtefactError(
                f"{found[-1]} is an adapter on {base}, and no such artefact lies beside it in "
                f"{folder.parent}; bring the base back (`rung lineage` says what it was), or "
                "import it, and train the adapter again if its id differs"
            )
        if path in found:
            raise ArtefactError(f"{folder} is an adapter on {base}, which lies above itself")
        found.append(path)
    return found
