"""Toy stage: a corpus of seeded random words."""

import os
import random

from pydantic import Field

from rung.config import Config as Base
from rung.store.context import Notes, StageContext


class Shape(Base):
    width: int = Field(3, ge=1, description="letters a word")


class Config(Base):
    count: int = Field(20, ge=1, description="words")
    shape: Shape = Shape()
    seed: int = 0
    folder: str = ""


def fingerprint(config: Config) -> int:
    """The number of files in `folder`: what this stage reads outside the store."""
    return len(os.listdir(config.folder)) if config.folder else 0


def estimate(config: Config, parents: object) -> dict[str, float]:
    return {"seconds": config.count / 10, "disk_gb": config.count / 1e9}


def run(context: StageContext, config: Config) -> Notes:
    note_start("words", context)
    rng = random.Random(config.seed)
    words = ["".join(rng.choices("abc", k=config.shape.width)) for _ in range(config.count)]
    (context.out / "deep").mkdir()
    (context.out / "deep" / "words.txt").write_text("\n".join(words))
    return {"counts": {"words": len(words)}}


def note_start(stage: str, context: StageContext) -> None:
    """One line a start into $TOY_LOG, so that a test can count what ran."""
    if path := os.environ.get("TOY_LOG"):
        with open(path, "a") as file:
            inputs = [name for role, name in context.names.items() if role != "self"]
            file.write(f"{stage} {','.join(inputs)}\n")
