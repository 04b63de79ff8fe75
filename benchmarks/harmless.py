"""A reward model of people's judgements, ours and TRL's: held-out accuracy and time.

    python benchmarks/harmless.py PAIRS.jsonl.gz MODEL-FOLDER [--num-pairs 1000]

The same pairs in the same split by prompt, one epoch, LoRA of rank 16 on all linear layers, the
same learning rate, bf16. Each side is one process from loading the model to its figures on held-out
pairs. The last line is JSON.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cells import HERE, PEERS_PYTHON
from compare import cell_environment

from rung.evals.stats import wilson
from rung.feedback.rankings import load_rankings, pairs, split_by_prompt
from rung.feedback.schema import Ranking
from rung.store.store import Store

RECIPE = HERE / "harmless.yaml"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pairs", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--num-pairs", type=int, default=1000)
    options = parser.parse_args()
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with gzip.open(options.pairs, "rt", encoding="utf-8") as file:
            lines = file.readlines()[: options.num_pairs]
        (folder / "harmless.jsonl").write_text("".join(lines), encoding="utf-8")
        ours = run_ours(folder, options.model.resolve())
        print(json.dumps({"rung": ours}), flush=True)
        theirs = run_trl(folder, options.model.resolve())
    print(json.dumps({"rung": ours, "trl": theirs, "speed": theirs["seconds"] / ours["seconds"]}))


def run_ours(folder: Path, model: Path) -> dict[str, Any]:
    """The clock runs for the last stage alone: loading, training, and figures of both splits."""
    for entry in ("start", "people", "reward"):
        began = time.perf_counter()
        subprocess.run(
            [
                *(sys.executable, "-m", "rung", "run", str(RECIPE), "--until", entry),
                *("--set", f"start.source={model}", "--store", str(folder / "store")),
            ],
            check=True,
            cwd=folder,
            env=cell_environment(folder, threads=os.cpu_count() or 1),
        )
        seconds = time.perf_counter() - began
    figures = Store(folder / "store").open("harmless/reward").notes["figures"]
    names = {"accuracy": "", "low": "_low", "high": "_high"}
    right = {name: figures[f"pair_accuracy{end}"] for name, end in names.items()}
    return {**right, "seconds": seconds, "train_accuracy": figures["train_pair_accuracy"]}


def run_trl(folder: Path, model: Path) -> dict[str, Any]:
    """TRL on the split that our stage made."""
    store = Store(folder / "store")
    config = store.open("harmless/reward").config
    sides = split_by_prompt(
        load_rankings(store.open("harmless/people").path),
        heldout_fraction=config["heldout_fraction"],
        seed=config["seed"],
    )
    for name, side in zip(("train", "heldout"), sides, strict=True):
        rows = [json.dumps(as_pair(record)) for record in side]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    words = [str(PEERS_PYTHON), str(HERE / "peers_trl_reward.py"), str(folder), str(model)]
    began = time.perf_counter()
    done = subprocess.run(
        [*words, str(config["lr"]), str(config["rankings_per_update"])],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=cell_environment(folder, threads=os.cpu_count() or 1),
    )
    seconds = time.perf_counter() - began
    result = json.loads(done.stdout.strip().splitlines()[-1])
    right = wilson(sum(result["hits"]), len(result["hits"]))
    return {
        "accuracy": right.value,
        "low": right.low,
        "high": right.high,
        "seconds": seconds,
        "peak_rss_gb": result["peak_rss_gb"],
        "num_train": len(sides[0]),
        "num_heldout": len(sides[1]),
    }


def as_pair(record: Ranking) -> dict[str, Any]:
    """A pair with implicit prompt, as TRL reads it."""
    better, worse = pairs(record)[0]
    return {
        name: [*record.prompt, {"role": "assistant", "content": record.answers[which]}]
        for name, which in (("chosen", better), ("rejected", worse))
    }


if __name__ == "__main__":
    main()
