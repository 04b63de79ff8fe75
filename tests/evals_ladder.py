"""A whole ladder of artefacts with invented figures, for tests of the report: no training."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from rung.evals.stats import bootstrap_mean
from rung.evals.tally import compare, tally_cells, tally_totals
from rung.store.artefact import Artefact, FileEntry, digest

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)> {{ 7*7 }}"
TEXT, FRESH = "text", "fresh"
# share that stops, admits what is made up, refuses what is real; quality of answers
MODELS = {
    "base": (0.02, 0.0, 0.0, 0.05),
    "continued": (0.02, 0.0, 0.0, 0.05),
    "without-replay": (0.02, 0.0, 0.0, 0.05),
    "chat": (0.97, 0.3, 0.02, 0.40),
    "dpo": (0.98, 0.7, 0.05, 0.45),
    "ppo": (0.99, 0.85, 0.08, 0.55),
    "grpo": (0.99, 0.80, 0.06, 0.50),
}
BPB = {  # on text, on fresh
    "base": (1.60, 2.10),
    "continued": (1.63, 1.75),
    "without-replay": (1.80, 1.73),
    "chat": (1.70, 1.80),
    "dpo": (1.71, 1.81),
    "ppo": (1.74, 1.84),
    "grpo": (1.73, 1.83),
}

PROMISED = (
    "total_seconds",
    "peak_rss_gb",
    "pretrain.heldout_bpb",
    "pretrain.heldout_bpb_5gram",
    *(f"continue.{kind}_bpb_{when}" for kind in ("fresh", "old") for when in ("before", "after")),
    "sft.stop_rate",
    "reward.pair_accuracy",
    "reward.noise_ceiling",
    *(
        f"{stage}.{name}"
        for stage in ("ppo", "dpo", "grpo")
        for name in (
            "win_rate",
            "win_rate_low",
            "false_claim_rate_before",
            "false_claim_rate_after",
            "refusal_rate_on_real_before",
            "refusal_rate_on_real_after",
        )
    ),
)
"""Figures that `rung report --json` has of every whole ladder."""


class Builder:
    """Writes artefact folders and remembers them by entry name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names: dict[str, Artefact] = {}

    def add(
        self,
        name: str,
        kind: str,
        stage: str,
        *,
        parents: dict[str, str] | None = None,
        files: dict[str, str] | None = None,
        **notes: Any,
    ) -> Artefact:
        """parents: role -> entry name. files: file name -> content."""
        folder = self.root / name
        folder.mkdir()
        for file, content in (files or {}).items():
            (folder / file).write_text(content)
        ids = {role: self.names[entry].id for role, entry in (parents or {}).items()}
        notes = {"seconds": 10.0, "peak_rss_gb": 1.5, **notes}
        artefact = Artefact(
            id=digest([name, kind, ids]),
            kind=kind,
            path=folder,
            stage=stage,
            config={"seed": 0},
            parents=ids,
            files={file: FileEntry("", 0) for file in files or {}},
            notes=notes,
        )
        self.names[name] = artefact
        return artefact


def questions() -> list[dict[str, Any]]:
    rows = []
    for number in range(120):
        made_up = number % 3 == 0
        kind = "unknown" if made_up else ("explain", "passage")[number % 2]
        name = f"list.sort_{number}"
        rows.append(
            {
                "id": f"{kind}/{name}",
                "format": kind,
                "split_group": "made_up" if made_up else "seen",
                "messages": [
                    {"role": "user", "content": f"What does `{name}` do? {HOSTILE}"},
                    {"role": "assistant", "content": "It sorts."},
                ],
                "truth": {"name": name, "exists": not made_up, "answer": "It sorts."},
            }
        )
    return rows


def answer_items(model: str) -> list[dict[str, Any]]:
    """Graded answers drawn with the model's rates."""
    stops, admits_made_up, refuses, quality = MODELS[model]
    generator = np.random.default_rng(sorted(MODELS).index(model))
    items = []
    for row in questions():
        made_up = not row["truth"]["exists"]
        admits = bool(generator.random() < (admits_made_up if made_up else refuses))
        rouge = float(np.clip(generator.normal(quality, 0.1), 0, 1))
        good = float(admits) if made_up else (0.0 if admits else 0.4 + 0.6 * rouge)
        items.append(
            {
                "suite": "instruct",
                "id": row["id"],
                "format": row["format"],
                "split_group": row["split_group"],
                "name": row["truth"]["name"],
                "exists": not made_up,
                "answer": f"{model} says {HOSTILE}",
                "stopped": bool(generator.random() < stops),
                "tokens": 12,
                "exact": rouge > 0.5,
                "rouge_l": rouge,
                "admits": admits,
                "utility": round(good, 6),
                "flags": [],
            }
        )
    return items


def text_items(corpus: str, level: float) -> list[dict[str, Any]]:
    return [
        {
            "suite": "likelihood",
            "corpus": corpus,
            "domain": f"domain{number % 3}",
            "id": f"d{number}",
            "bits": level * 1000 * (1 + 0.1 * math.sin(number)),
            "bytes": 1000,
        }
        for number in range(30)
    ]


def likelihood(levels: dict[str, float]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """corpus id -> bits per byte, as evaluation.json has it, and its items."""
    part, items = {}, []
    for corpus, level in levels.items():
        estimate = {"value": level, "low": level - 0.05, "high": level + 0.05, "n": 30}
        estimate |= {"bytes": 30_000}
        part[corpus] = {"total": estimate, "domains": {f"domain{i}": estimate for i in range(3)}}
        items += text_items(corpus, level)
    return part, items


def evaluation_files(builder: Builder, model: str, *, baseline: str | None) -> dict[str, str]:
    on_text, on_fresh = BPB[model]
    ids = {name: builder.names[name].id for name in (TEXT, FRESH)}
    part, items = likelihood({ids[TEXT]: on_text, ids[FRESH]: on_fresh})
    answers = answer_items(model)
    result: dict[str, Any] = {
        "model": builder.names[model].id,
        "settings": {"temperature": 0.7},
        "likelihood": part,
        "instruct": {
            "dataset": builder.names["facts"].id,
            "totals": tally_totals(answers, seed=0),
            "cells": tally_cells(answers, seed=0),
        },
        "samples": {
            "answers": [
                {"prompt": "What is the capital of France?", "text": HOSTILE, "stopped": True}
            ],
            "continuations": [
                {"prompt": "def sorted(", "text": f"{model} goes on", "stopped": False}
            ],
        },
        "skipped": [],
    }
    if baseline is not None:
        versus = compare(answers, answer_items(baseline), seed=0)
        kl = bootstrap_mean([2.0, 3.0, 4.0]).to_json()
        result["versus_baseline"] = {"baseline": builder.names[baseline].id, **versus, "kl": kl}
    items += answers
    return {
        "evaluation.json": json.dumps(result),
        "items.jsonl": "".join(json.dumps(item) + "\n" for item in items),
    }


def training_steps(*, policy: bool) -> list[dict[str, Any]]:
    """Logged steps: a falling loss, and for a policy the figures of its rollouts."""
    steps: list[dict[str, Any]] = []
    for number in range(40 if policy else 1500):
        step: dict[str, Any] = {"step": number, "loss": 2 + 6 * math.exp(-number / 200)}
        step |= {"tokens": 1000, "learning_rate": 1e-3}
        if policy:
            step |= {
                "objective/kl": number / 8,
                "eval/scores": number / 20,
                "eval/utility": 0.5 + number / 80 - (number / 45) ** 2 / 2,
                "policy/clipfrac_avg": 0.5 if number > 35 else 0.1,
            }
        elif number % 250 == 0:
            step["heldout_loss"] = step["loss"] + 0.1
        steps.append(step)
    return steps


def build_ladder(
    root: Path, *, baselines: bool = True
) -> tuple[dict[str, Artefact], dict[str, Path]]:
    """(artefacts by entry name, metrics.jsonl by entry name) in the shape of the quickstart.

    baselines: whether evaluations of aligned models were given the model before.
    """
    builder = Builder(root)
    report = {
        "documents_read": 20,
        "documents": 18,
        "dropped": {"too_short": {"count": 2, "examples": [{"id": "a", "text": HOSTILE}]}},
        "redactions": {"email": {"count": 3, "documents": 2}},
        "domains": {"stdlib": {"train": {"documents": 15, "bytes": 9000}}},
    }
    for name in (TEXT, FRESH):
        files = {"documents.parquet": "", "report.json": json.dumps(report)}
        builder.add(name, "corpus", "curate", files=files, figures={"documents": 18})
    builder.add(
        "tokenizer", "tokenizer", "tokenizer", parents={"corpora.0": TEXT},
        figures={"bytes_per_token": 3.4, "vocab_size": 4096},
    )  # fmt: skip
    tokens = {"tokens": 1_700_000, "flops": 4e13}
    builder.add(
        "base", "model", "pretrain", parents={"corpus": TEXT, "tokenizer": "tokenizer"}, **tokens
    )
    builder.add(
        "without-replay", "model", "continue", parents={"model": "base", "corpus": FRESH}, **tokens
    )
    more = {"model": "base", "corpus": FRESH, "replay": TEXT}
    builder.add("continued", "model", "continue", parents=more, **tokens)
    rows = "".join(json.dumps(row) + "\n" for row in questions())
    builder.add(
        "facts", "dataset", "instruct", parents={"corpora.0": TEXT, "corpora.1": FRESH},
        files={"heldout.jsonl": rows}, figures={"num_train": 12000, "num_heldout": 120},
    )  # fmt: skip
    builder.add(
        "chat", "model", "sft", parents={"model": "continued", "dataset": "facts"}, **tokens
    )
    builder.add("feedback", "feedback", "collect", parents={"model": "chat", "dataset": "facts"})
    bins = [{"expected": 0.5 + i / 10, "observed": 0.5 + i / 12, "n": 40} for i in range(5)]
    held = {
        "pair_accuracy": {"value": 0.8, "low": 0.76, "high": 0.84, "n": 400},
        "noise_ceiling": 0.86,
        "way_to_ceiling": 0.83,
        "calibration": {"ece": 0.03, "bins": bins},
        "reward_length_correlation": -0.2,
    }
    record = json.dumps({"heldout": held, "annotator_kinds": ["simulated"]})
    builder.add(
        "reward", "reward-model", "reward", parents={"model": "chat", "feedback": "feedback"},
        files={"reward.json": record}, figures={"pair_accuracy": 0.8, "noise_ceiling": 0.86},
    )  # fmt: skip
    builder.add("dpo", "model", "dpo", parents={"model": "chat", "feedback": "feedback"})
    for name in ("ppo", "grpo"):
        roles = {"model": "chat", "reward": "reward", "dataset": "facts"}
        builder.add(name, "model", name, parents=roles, figures={"kl": 3.3})
    add_evaluations(builder, baselines=baselines)
    metrics = {}
    for name in ("base", "continued", "chat", "ppo", "grpo"):
        path = root / f"{name}.metrics.jsonl"
        steps = training_steps(policy=name in ("ppo", "grpo"))
        path.write_text("".join(json.dumps(step) + "\n" for step in steps))
        metrics[name] = path
    return builder.names, metrics


def add_evaluations(builder: Builder, *, baselines: bool) -> None:
    part, items = likelihood({builder.names[TEXT].id: 1.67})
    files = {
        "evaluation.json": json.dumps({"likelihood": part, "skipped": []}),
        "items.jsonl": "".join(json.dumps(item) + "\n" for item in items),
    }
    roles = {"corpus": TEXT, "tokenizer": "tokenizer", "model": "base"}
    builder.add("5gram", "evaluation", "ngram", parents=roles, files=files)
    for model in MODELS:
        baseline = "chat" if baselines and model in ("dpo", "ppo", "grpo") else None
        parents = {"model": model, "corpora.0": TEXT, "corpora.1": FRESH, "dataset": "facts"}
        files = evaluation_files(builder, model, baseline=baseline)
        builder.add(f"eval-{model}", "evaluation", "evaluate", parents=parents, files=files)
