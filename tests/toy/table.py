"""The toy stage table, and a command that runs a recipe with it: table.py RECIPE STORE."""

import sys
from pathlib import Path

from rung.pipeline import run
from rung.progress import PlainProgress
from rung.recipe import load_recipe
from rung.stages import Stage
from rung.store.store import Store

STAGES = {
    stage.command: stage
    for stage in (
        Stage("words", "toy.words", {}, "corpus", "Make words."),
        Stage("train", "toy.train", {"corpus": "corpus", "replay": "corpus?"}, "model", "Train."),
        Stage(
            "score",
            "toy.score",
            {"models": "model+", "corpora": "corpus*"},
            "evaluation",
            "Score models.",
        ),
    )
}

RECIPE = """\
name: ladder
seed: 7
defaults:
  train: {every: 3}
stages:
  text: {stage: words, count: 30}
  base:
    stage: train
    corpus: text
  other:
    stage: train
    corpus: text
    replay: text
    seed: 1
    lr: 1e-3
  scores:
    stage: score
    models: [base, other]
    corpora: text
"""

if __name__ == "__main__":
    recipe = load_recipe(Path(sys.argv[1]), overrides=sys.argv[3:], stages=STAGES)
    run(recipe, Store(sys.argv[2]), progress=PlainProgress(sys.stdout))
