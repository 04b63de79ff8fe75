"""The sides of each benchmark: which Python runs which worker with which options."""

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEERS_PYTHON = HERE / ".peers" / "bin" / "python"
OURS = "rung"


@dataclass(frozen=True)
class Cell:
    """One side. peer: runs in the peers' environment. Low precision is asked for where
    `wants_bf16` and the processor has it; a cell that `needs_bf16` is left out elsewhere.
    extra: measured only when named with --cells."""

    name: str
    script: str
    options: tuple[str, ...] = ()
    peer: bool = True
    wants_bf16: bool = True
    needs_bf16: bool = False
    extra: bool = False

    def command(self, python: str, folder: Path, *, bf16: bool) -> list[str]:
        """The words of the worker's command line."""
        low = bf16 and self.wants_bf16
        precision = ["--bf16"] if low else []
        if not self.peer:
            precision = ["--precision", "bf16" if low else "fp32"]
        interpreter = str(PEERS_PYTHON) if self.peer else python
        words = [option.replace("FOLDER", str(folder)) for option in self.options]
        return [interpreter, str(HERE / self.script), *words, *precision]


_MICRO = ("--micro", "1024")  # tokens of a microbatch


def _generation(kind: str) -> tuple[Cell, ...]:
    """Our engine and both caches of transformers."""
    script = "peers_generate.py"
    return (
        Cell(OURS, "ours_generate.py", (kind, "FOLDER"), peer=False),
        Cell("hf_dynamic", script, (kind, "FOLDER")),
        Cell("hf_static", script, (kind, "FOLDER", "--cache", "static")),
    )


CELLS: dict[str, tuple[Cell, ...]] = {
    "decode": _generation("decode"),
    "group": _generation("group"),
    "stream": _generation("stream"),
    # 16 samples at work at once: slots that are filled again, or batches one after the other
    "ragged": (
        Cell(OURS, "ours_generate.py", ("ragged", "FOLDER", "--rows", "16"), peer=False),
        Cell(
            "rung_static",
            "ours_generate.py",
            ("ragged", "FOLDER", "--rows", "16", "--static"),
            peer=False,
        ),
    ),
    "pretrain": (
        Cell(OURS, "ours.py", ("pretrain", "FOLDER"), peer=False),
        Cell("hf_trainer_bf16", "peers_hf_trainer.py", ("FOLDER",), needs_bf16=True),
        Cell("hf_trainer_default", "peers_hf_trainer.py", ("FOLDER",), wants_bf16=False),
        Cell("litgpt", "peers_litgpt.py", ("FOLDER",)),
        Cell("rung_eager", "ours.py", ("pretrain", "FOLDER", "--eager"), peer=False, extra=True),
        Cell(
            "rung_muon",
            "ours.py",
            ("pretrain", "FOLDER", "--optimizer", "muon"),
            peer=False,
            extra=True,
        ),
    ),
    "sft": (
        Cell(OURS, "ours.py", ("sft", "FOLDER"), peer=False),
        Cell("trl_packing", "peers_trl.py", ("sft", "FOLDER", "--packing")),
        Cell("trl", "peers_trl.py", ("sft", "FOLDER")),
    ),
    "lora": (
        Cell(OURS, "ours.py", ("lora", "FOLDER"), peer=False),
        Cell("trl_packing", "peers_trl.py", ("lora", "FOLDER", "--packing")),
        Cell("trl", "peers_trl.py", ("lora", "FOLDER")),
        Cell("rung_full", "ours.py", ("lora", "FOLDER", "--full"), peer=False, extra=True),
        # as a machine with little memory would run them
        Cell("rung_micro", "ours.py", ("lora", "FOLDER", *_MICRO), peer=False, extra=True),
        Cell(
            "full_micro", "ours.py", ("lora", "FOLDER", "--full", *_MICRO), peer=False, extra=True
        ),
    ),
    "dpo": (
        Cell(OURS, "ours.py", ("dpo", "FOLDER"), peer=False),
        Cell("trl", "peers_trl.py", ("dpo", "FOLDER")),
    ),
    "grpo": (
        Cell(OURS, "ours.py", ("grpo", "FOLDER"), peer=False),
        Cell("trl", "peers_trl.py", ("grpo", "FOLDER")),
    ),
}

_NEW = "new tokens/s"
UNITS = {
    "decode": _NEW,
    "group": _NEW,
    "stream": _NEW,
    "ragged": _NEW,
    "pretrain": "tokens/s",
    "sft": "tokens/s (pads not counted)",
    "lora": "tokens/s (pads not counted)",
    "dpo": "pairs/s",
    "grpo": "answers/s",
}


def pick_cells(kind: str, names: str, *, bf16: bool) -> tuple[list[Cell], dict[str, str]]:
    """(cells to run, ours first; why others are left out).

    names: comma-separated, or "" for all that are not extra. SystemExit names an unknown one.
    """
    known = {cell.name: cell for cell in CELLS[kind]}
    asked = [name for name in names.split(",") if name]
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise SystemExit(f"{kind} has no cell {unknown[0]!r}; it has {', '.join(known)}")
    wanted = [
        cell
        for cell in known.values()
        if (cell.name in asked or cell.name == OURS if asked else not cell.extra)
    ]
    left_out = {
        cell.name: "this processor has no bf16" for cell in wanted if cell.needs_bf16 and not bf16
    }
    return [cell for cell in wanted if cell.name not in left_out], left_out
