"""An artefact: one immutable folder with a manifest, the unit that stages read and write."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rung.errors import ArtefactError

KINDS = (
    "corpus",
    "tokenizer",
    "dataset",
    "labels",
    "model",
    "classifier",
    "reward-model",
    "feedback",
    "index",
    "evaluation",
)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, so that equal values have equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@dataclass(frozen=True)
class FileEntry:
    """One file of an artefact: sha256 (hex) and size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Artefact:
    """What a manifest says, plus where the folder is.

    `id` is sha256(kind, config, parents, files); `notes` (time, host, seconds, figures, code
    version) are outside the hash. `parents` maps a role to an artefact id; a role that takes
    several artefacts is written "role.0", "role.1", ...
    """

    id: str
    kind: str
    path: Path
    stage: str
    config: Mapping[str, Any]
    parents: Mapping[str, str]
    files: Mapping[str, FileEntry]
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def short_id(self) -> str:
        return self.id[:12]

    def file(self, name: str) -> Path:
        """Path of one file of this artefact; ArtefactError lists the files it has otherwise."""
        if name not in self.files:
            have = ", ".join(sorted(self.files)[:8])
            raise ArtefactError(f"{self.kind} {self.short_id} has no file {name!r}; it has: {have}")
        return self.path / name
