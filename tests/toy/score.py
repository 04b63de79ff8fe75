"""Toy stage: an evaluation of several models."""

import json

from rung.config import Config as Base
from rung.store.context import Notes, StageContext
from toy.words import note_start


class Config(Base):
    digits: int = 4


def run(context: StageContext, config: Config) -> Notes:
    note_start("score", context)
    scores = {
        context.names[f"models.{i}"]: model.file("weights").read_text()[: config.digits]
        for i, model in enumerate(context.many["models"])
    }
    (context.out / "evaluation.json").write_text(json.dumps(scores))
    return {}
