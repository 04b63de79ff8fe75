"""Kill -9 at random instants of a whole ladder: `python benchmarks/kills.py --kills 20`.

The ladder runs once in peace. Then, for every kill, it starts in an empty store, its whole process
group is killed at an instant drawn over the whole run, and the same command runs to its end: every
artefact id must equal the uninterrupted run's. The last line is JSON.

An instant is (entry, seconds after that entry began), not seconds after the start: loading
libraries takes as long as the ladder itself, and a busy machine would shift every kill.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "tests" / "ladder" / "tiny.yaml"


class Mark(NamedTuple):
    """When an entry began: seconds after the first one did."""

    entry: str
    at: float


class Instant(NamedTuple):
    """When to kill: `offset` seconds after `entry` began."""

    entry: str
    offset: float


@dataclass(frozen=True)
class Whole:
    """An uninterrupted run. built: entries that were not re-used. seconds: from the first mark."""

    ids: dict[str, str]
    built: tuple[str, ...]
    marks: tuple[Mark, ...]
    seconds: float


def run_whole(recipe: Path, store: Path, *, report: bool = False) -> Whole:
    """Run `recipe` to its end; RuntimeError with the end of its output when it fails."""
    process = spawn(recipe, store, report=report)
    assert process.stdout is not None
    assert process.stderr is not None
    marks: list[Mark] = []
    said: list[str] = []
    began = 0.0
    with process:
        for line in process.stderr:
            said.append(line)
            entry = entry_of(line)
            if entry is not None and entry not in {mark.entry for mark in marks}:
                began = began or time.monotonic()
                marks.append(Mark(entry, time.monotonic() - began))
        out = process.stdout.read()
    if process.returncode:
        raise RuntimeError(
            f"the run in {store} ended with exit code {process.returncode}:\n{''.join(said[-15:])}"
        )
    entries = json.loads(out)["entries"]
    return Whole(
        ids={e["entry"]: e["id"] for e in entries},
        built=tuple(e["entry"] for e in entries if e["built"]),
        marks=tuple(marks),
        seconds=time.monotonic() - began,
    )


def run_and_kill(recipe: Path, store: Path, instant: Instant) -> bool:
    """Start `recipe` and kill its process group at `instant`; False: it had ended before."""
    process = spawn(recipe, store)
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        for line in process.stderr:
            if entry_of(line) == instant.entry:
                time.sleep(instant.offset)
                break
        # Its group bears its id, and is there until `wait` has been called.
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def spawn(recipe: Path, store: Path, *, report: bool = False) -> subprocess.Popen[str]:
    """`rung run` in a process group of its own; one thread, so that tiny models do not wait."""
    command = [sys.executable, "-m", "rung", "run", str(recipe), "--store", str(store), "--json"]
    return subprocess.Popen(
        command if report else [*command, "--no-report"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def entry_of(line: str) -> str | None:
    """The entry of a line that says that it begins, `base (pretrain) ...`, else None."""
    words = line.split()
    begins = len(words) == 3 and words[1].startswith("(") and words[2] == "..."
    return words[0] if begins else None


def draw_instants(whole: Whole, num: int, *, seed: int) -> list[Instant]:
    """`num` instants in order, one drawn in each of `num` equal spans of the run."""
    rng = random.Random(seed)
    instants = []
    for number in range(num):
        at = (number + rng.random()) / num * whole.seconds
        mark = max((m for m in whole.marks if m.at <= at), key=lambda m: m.at)
        instants.append(Instant(mark.entry, round(at - mark.at, 4)))
    return instants


def differences(ids: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """Entries whose ids differ, or that only one side has."""
    return sorted(e for e in ids.keys() | wanted.keys() if ids.get(e) != wanted.get(e))


def prove(recipe: Path, folder: Path, *, kills: int, seed: int) -> dict[str, object]:
    """One line a kill, then the figures: kills that landed, and how many ended in equal ids."""
    whole = run_whole(recipe, folder / "whole")
    print(f"in peace: {len(whole.ids)} artefacts in {whole.seconds:.1f} s", flush=True)
    landed, equal, killed_in = 0, 0, []
    for number, instant in enumerate(draw_instants(whole, kills, seed=seed), start=1):
        store = folder / "killed"
        shutil.rmtree(store, ignore_errors=True)
        hit = run_and_kill(recipe, store, instant)
        again = run_whole(recipe, store)
        wrong = differences(again.ids, whole.ids)
        landed += hit
        equal += hit and not wrong
        killed_in += [instant.entry] if hit else []
        how = "killed" if hit else "had ended before the kill"
        result = f"differ: {', '.join(wrong)}" if wrong else "equal"
        print(
            f"{number:>3} of {kills}  {how} {instant.offset:.2f} s into {instant.entry}; "
            f"{len(again.built)} of {len(again.ids)} built after it; ids {result}",
            flush=True,
        )
    return {"kills": landed, "equal": equal, "missed": kills - landed, "killed_in": killed_in}


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    return parser.parse_args(words)


def main() -> None:
    options = parse_options()
    began = time.monotonic()
    with TemporaryDirectory(prefix="rung-kills-") as name:
        figures = prove(
            options.recipe.resolve(), Path(name), kills=options.kills, seed=options.seed
        )
    seconds = round(time.monotonic() - began, 1)
    print(json.dumps({**figures, "seconds": seconds, "seed": options.seed}))
    if figures["equal"] != options.kills:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
