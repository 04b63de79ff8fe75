"""metrics.jsonl: one line a step, appended; a resumed run cuts it back to its checkpoint."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rung.store.durable import sync_file, write_atomic

FILE = "metrics.jsonl"
SAMPLES = "samples.jsonl"  # {"step": 40, "prompt": "...", "text": "...", "score": 0.4}


class RunLog:
    """The metrics of one run, or other lines with a step.

    A line: {"step": 40, "loss": 3.21, "tokens_per_s": 5210.0}
    A value that is not finite is kept as the text "nan", "inf" or "-inf" (JSON has no such
    number) and read back as a float. No file is held open between lines, so a stage that ends
    by an exception leaves nothing to close.
    """

    def __init__(self, run_dir: Path, file: str = FILE):
        """run_dir/`file`, made when missing; a last line torn by a kill is cut off."""
        run_dir.mkdir(parents=True, exist_ok=True)
        self.path = run_dir / file
        self.path.touch()
        whole = self.path.read_bytes()
        end = whole.rfind(b"\n") + 1
        if end != len(whole):
            os.truncate(self.path, end)

    def append(self, line: Mapping[str, Any]) -> None:
        """Add one line, which has a "step"; it is on disk for sure after the next `sync`."""
        assert "step" in line, line
        clean = {name: _to_json(value) for name, value in line.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(clean, allow_nan=False) + "\n")

    def sync(self) -> None:
        """Force the lines to disk."""
        sync_file(self.path)

    def truncate_after(self, step: int) -> None:
        """Drop lines of later steps, so that a resumed run does not write them twice."""
        kept = [line for line in self.path.read_text().splitlines() if _step(line) <= step]
        write_atomic(self.path, "".join(line + "\n" for line in kept))

    def read(self) -> list[dict[str, Any]]:
        return read_metrics(self.path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics.jsonl, in order; a torn last line is left out."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [{k: _from_json(v) for k, v in json.loads(line).items()} for line in lines]


def _step(line: str) -> int:
    return int(json.loads(line)["step"])


def _to_json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _from_json(value: Any) -> Any:
    return float(value) if value in ("nan", "inf", "-inf") else value
