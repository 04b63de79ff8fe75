"""What a stage is given: its inputs, where to write, and the run folder that survives a kill."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rung.store.artefact import Artefact


class Progress(Protocol):
    """A progress line: a bar with ETA on a terminal, a plain line every few seconds elsewhere."""

    def start(self, title: str, *, total: float | None = None, unit: str = "") -> None:
        """Begin a task of `total` units (None when unknown)."""

    def update(self, done: float, **figures: float | str) -> None:
        """`done` units so far; figures such as loss=2.1 are shown beside it."""

    def say(self, line: str) -> None:
        """One line the user should keep: a count, a warning, a sample."""

    def finish(self) -> None:
        """End the current task."""


@dataclass(frozen=True)
class StageContext:
    """One stage at work.

    inputs: artefact by role; many: artefacts by role where a role takes several.
    out: the folder whose files become the artefact. It must be a pure function of inputs and
        config: no clocks, host names or timings in it. It is empty at every start.
    run: scratch that survives kills and is outside the hash: metrics.jsonl, checkpoints/.
    names: role (or "role.0") -> name of the recipe entry or artefact, for messages and tables.
    """

    inputs: Mapping[str, Artefact]
    many: Mapping[str, Sequence[Artefact]]
    out: Path
    run: Path
    progress: Progress
    names: Mapping[str, str]

    def input(self, role: str) -> Artefact:
        return self.inputs[role]

    def optional(self, role: str) -> Artefact | None:
        return self.inputs.get(role)


Notes = dict[str, Any]
"""What a stage returns: figures for tables and the report; in the manifest, outside the hash."""
