"""Toy stage: a model that is a chain of hashes, one link a step, with checkpoints."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

from rung.config import Config as Base
from rung.store import checkpoint
from rung.store.context import Notes, StageContext
from rung.store.runlog import RunLog
from toy.words import note_start


class Config(Base):
    steps: int = 30
    every: int = 4
    sleep: float = 0.0
    lr: float = 0.5
    seed: int = 0


def run(context: StageContext, config: Config) -> Notes:
    note_start("train", context)
    words = context.input("corpus").file("deep/words.txt").read_bytes()
    state, first = f"{config.seed}", 0
    log = RunLog(context.run)
    found = checkpoint.latest_valid(context.run / "checkpoints")
    if found.path is not None:
        state, first = (found.path / "state").read_text(), found.step
    log.truncate_after(first)
    for step in range(first + 1, config.steps + 1):
        state = hashlib.sha256(state.encode() + words + str(step).encode()).hexdigest()
        log.append({"step": step, "loss": int(state[:4], 16) / 65536})
        time.sleep(config.sleep)
        if step % config.every == 0:
            log.sync()
            checkpoint.save(context.run / "checkpoints", step, write_state(state))
    (context.out / "weights").write_text(state)
    return {"figures": {"loss": int(state[:4], 16) / 65536}}


def write_state(state: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "state").write_text(state)

    return write
