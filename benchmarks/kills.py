"""Kill -9 at random instants of a whole ladder: `python benchmarks/kills.py --kills 20`.

The ladder runs once in peace. Then, for every kill, it starts in an empty store, its whole process
group is killed at an instant drawn over the whole run, and the same command runs to its end: every
artefact id must equal the uninterrupted run's. The last line is JSON.

An instant is (entry, processor seconds after it began), which Linux tells of a process: loading
libraries takes as long as this ladder, and a busy machine would shift every wall-clock instant.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "tests" / "ladder" / "tiny.yaml"
POLL = 0.005  # seconds between two looks at a process


@dataclass(frozen=True)
class Whole:
    """A run that reached its end. built: entries that were not re-used. begins: processor seconds
    at which each entry began, and `end` those of the whole, after the first entry did."""

    ids: dict[str, str]
    built: tuple[str, ...]
    begins: dict[str, float]
    end: float


class Instant(NamedTuple):
    """When to kill: `offset` processor seconds after `entry` began."""

    entry: str
    offset: float


class Process:
    """`rung run` in a process group of its own, which gets a kill -9 when the block ends.

    One thread, so that tiny models do not wait for a second one. Output goes to files: a full pipe
    would stop the run.
    """

    def __init__(self, recipe: Path, store: Path, said: Path) -> None:
        self.said = said
        command = [sys.executable, "-m", "rung", "run", str(recipe), "--store", str(store)]
        with said.with_suffix(".json").open("w") as out, said.open("w") as error:
            self._process = subprocess.Popen(
                [*command, "--json", "--no-report"],
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                stdout=out,
                stderr=error,
                start_new_session=True,
            )
        self.begins: dict[str, float] = {}
        self.now = 0.0

    def running(self) -> bool:
        """Waits a moment, looks at the clock and at the entries that began since."""
        time.sleep(POLL)
        if self._process.poll() is not None:
            return False
        self.now = processor_seconds(self._process.pid)
        for line in self.said.read_text().splitlines():
            if (entry := entry_of(line)) is not None:
                self.begins.setdefault(entry, self.now)
        return True

    def reached(self, instant: Instant) -> bool:
        began = self.begins.get(instant.entry)
        return began is not None and self.now - began >= instant.offset

    def kill(self) -> None:
        """Nothing where it has ended: then its group's id may already be another's."""
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    @property
    def code(self) -> int | None:
        return self._process.returncode

    def output(self) -> Any:
        return json.loads(self.said.with_suffix(".json").read_text())


@contextmanager
def start(recipe: Path, store: Path) -> Iterator[Process]:
    with TemporaryDirectory(prefix="rung-said-") as name:
        process = Process(recipe, store, Path(name) / "said")
        try:
            yield process
        finally:
            process.kill()


def entry_of(line: str) -> str | None:
    """The entry of a line that says that it begins or is re-used, else None.

    `base (pretrain) ...`, `base  pretrain  model  3f2a9c81d0b7  re-used, cost 61.2 s`
    """
    words = line.split()
    begins = len(words) == 3 and words[1].startswith("(") and words[2] == "..."
    return words[0] if begins or words[4:5] == ["re-used,"] else None


def processor_seconds(pid: int) -> float:
    """User and system time of a process that has not been waited for (see proc(5), stat)."""
    after_name = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def run_whole(recipe: Path, store: Path) -> Whole:
    """Run `recipe` to its end; RuntimeError with the end of its output when it fails."""
    with start(recipe, store) as process:
        while process.running():
            pass
        if process.code:
            end = "".join(process.said.read_text().splitlines(keepends=True)[-15:])
            raise RuntimeError(f"the run in {store} ended with exit code {process.code}:\n{end}")
        entries = process.output()["entries"]
    first = min(process.begins.values())
    return Whole(
        ids={entry["entry"]: entry["id"] for entry in entries},
        built=tuple(entry["entry"] for entry in entries if entry["built"]),
        begins={entry: at - first for entry, at in process.begins.items()},
        end=process.now - first,
    )


def run_and_kill(recipe: Path, store: Path, instant: Instant) -> bool:
    """Start `recipe` and kill its process group at `instant`; False: it had ended before."""
    with start(recipe, store) as process:
        while process.running() and not process.reached(instant):
            pass
    if process.code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the run in {store} ended by itself with exit code {process.code}")
    return process.code == -signal.SIGKILL


def kill_in_empty(recipe: Path, store: Path, instant: Instant) -> Instant:
    """Kill a run that starts from nothing; the instant at which it was.

    A run that went faster than the one the instant was drawn for may have ended by then: it
    starts anew and dies after half the offset.
    """
    while True:
        shutil.rmtree(store, ignore_errors=True)
        if run_and_kill(recipe, store, instant):
            return instant
        instant = Instant(instant.entry, instant.offset / 2)


def draw_instants(whole: Whole, num: int, *, seed: int) -> list[Instant]:
    """`num` instants in order, one drawn in each of `num` equal spans of the run."""
    rng = random.Random(seed)
    instants = []
    for number in range(num):
        at = (number + rng.random()) / num * whole.end
        began, entry = max((b, e) for e, b in whole.begins.items() if b <= at)
        instants.append(Instant(entry, round(at - began, 4)))
    return instants


def differences(ids: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """Entries whose ids differ, or that only one side has."""
    return sorted(e for e in ids.keys() | wanted.keys() if ids.get(e) != wanted.get(e))


def prove(recipe: Path, folder: Path, *, kills: int, seed: int) -> dict[str, Any]:
    """Says one line a kill; gives the kills, how many ended in equal ids, and the entry that each
    fell into (the first one that was not yet built)."""
    whole = run_whole(recipe, folder / "whole")
    print(f"in peace: {len(whole.ids)} artefacts, {whole.end:.1f} s of work", flush=True)
    equal, killed_in = 0, []
    for number, drawn in enumerate(draw_instants(whole, kills, seed=seed), start=1):
        instant = kill_in_empty(recipe, folder / "killed", drawn)
        again = run_whole(recipe, folder / "killed")
        wrong = differences(again.ids, whole.ids)
        equal += not wrong
        killed_in.append(again.built[0] if again.built else "the end")
        print(
            f"{number:>3} of {kills}  killed {instant.offset:.2f} s after the start of "
            f"{instant.entry}, in {killed_in[-1]}; ids "
            + (f"differ: {', '.join(wrong)}" if wrong else "equal"),
            flush=True,
        )
    return {"kills": kills, "equal": equal, "killed_in": killed_in}


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
