"""Rung's side of every benchmark: its own loop and objectives, run by the product's Python."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from stopwatch import Stopwatch
from torch import Tensor
from workload import (
    END,
    GROUP,
    GRPO_KL,
    GRPO_LEARNING_RATE,
    LEARNING_RATE,
    NEW_TOKENS,
    PAD,
    ROW,
    Plan,
    read_plan,
    read_samples,
)

from rung.feedback.schema import Ranking
from rung.model.attention import TorchForest
from rung.model.load import load_model
from rung.model.peak import measure_peak_flops
from rung.model.precision import pick_dtype
from rung.store.context import StageContext
from rung.tokens.forest import Tree, document, group, tree_size
from rung.tokens.views import ConversationView, ViewReport
from rung.train.compiled import TOKEN_BUCKET, compile_layers
from rung.train.loop import Objective, train
from rung.train.objectives.dpo import Config as DPOConfig
from rung.train.objectives.dpo import DPOObjective
from rung.train.objectives.grpo import Config as GRPOConfig
from rung.train.objectives.grpo import GRPOObjective
from rung.train.objectives.pretrain import StreamConfig, StreamObjective
from rung.train.objectives.sft import Config as SFTConfig
from rung.train.objectives.sft import SFTObjective
from rung.train.optim import TrainConfig
from rung.train.ranked import RankedTree
from rung.train.reference import answer_logps_of
from rung.train.rollout import Prompt
from rung.train.start import start_model


class Silence:
    """A progress line that shows nothing: the other sides show nothing either."""

    def start(self, title: str, *, total: float | None = None, unit: str = "") -> None: ...

    def update(self, done: float, **figures: float | str) -> None: ...

    def say(self, line: str) -> None: ...

    def finish(self) -> None: ...


class FixedRows:
    """A stream of the workload's rows, one step's worth at a time."""

    def __init__(self, path: Path, samples: int) -> None:
        self.rows, self.samples = np.load(path), samples
        self.tokens_per_batch = samples * ROW

    def batch(self, step: int) -> list[Tree]:
        return [document(row[:ROW]) for row in self.rows[step * self.samples :][: self.samples]]


class EvenShare:
    """The reward: the share of even token ids, as TRL's side computes it."""

    def scores_and_features(self, forest: TorchForest) -> tuple[Tensor, Tensor]:
        even = (forest.target % 2 == 0).float()
        ones = torch.ones_like(even)
        sums = [
            torch.zeros(forest.num_segments).index_add(0, forest.target_seg, values)
            for values in (even, ones)
        ]
        answers = forest.target_seg.new_tensor(forest.host.answers)
        shares = sums[0][answers] / sums[1][answers].clamp(min=1)
        return shares, torch.zeros(len(even), 1)


def run_pretrain(folder: Path, plan: Plan, watch: Stopwatch, options: argparse.Namespace) -> None:
    model = load_model(folder / "model").train()
    config = StreamConfig(
        optimizer=options.optimizer,
        lr=LEARNING_RATE,
        matrix_lr=LEARNING_RATE,
        precision=options.precision,
        microbatch_tokens=plan.samples * ROW,
        looks=0,
        checkpoints=0,
    )
    if not options.eager:
        compile_layers(model)
    objective = StreamObjective(
        model,
        FixedRows(folder / "rows.npy", plan.samples),
        num_steps=plan.warmup + plan.steps,
        config=config,
        tokenizer=cast(Any, SimpleNamespace(pad=PAD)),  # rows fill the bucket: never looked at
        bucket=0 if options.eager else TOKEN_BUCKET,
    )
    run_watched(objective, config, folder, watch, units=lambda _: plan.samples * ROW)


def run_sft(folder: Path, plan: Plan, watch: Stopwatch, options: argparse.Namespace) -> None:
    trees = [_conversation(row) for row in read_samples(folder)]
    total = sum(tree_size(tree) for tree in trees)
    adapter = options.kind == "lora" and not options.full
    config = SFTConfig(
        adapter="lora" if adapter else "none",
        optimizer="adamw",
        lr=LEARNING_RATE,
        precision=options.precision,
        epochs=1,
        # as many tokens as the other cells' steps hold on average; none is cut in two
        tokens_per_step=max(-(-total // (plan.warmup + plan.steps)), *map(tree_size, trees)),
        checkpoints=0,
        **({"microbatch_tokens": options.micro} if options.micro else {}),
    )
    report = ViewReport(len(trees), len(trees), 0, {}, total, total)
    view = ConversationView(trees, list(range(len(trees))), report)
    objective = SFTObjective(start_model(folder / "model", config).train(), view, config)
    run_watched(objective, config, folder, watch, units=lambda metrics: metrics["tokens"])


def _conversation(row: dict[str, list[int]]) -> Tree:
    weights = [0.0] * len(row["prompt"]) + [1.0] * len(row["answer"])
    return document(np.array(row["prompt"] + row["answer"]), np.array(weights, np.float32))


def run_dpo(folder: Path, plan: Plan, watch: Stopwatch, options: argparse.Namespace) -> None:
    model = load_model(folder / "model").train()
    config = DPOConfig(
        lr=LEARNING_RATE,
        precision=options.precision,
        epochs=1,
        rankings_per_update=plan.samples,
        beta=0.1,
        checkpoints=0,
    )
    trees = [_pair(row) for row in read_samples(folder)]
    reference = answer_logps_of(
        model, trees, config=config, microbatch_tokens=config.microbatch_tokens
    )
    objective = DPOObjective(model, trees, reference, config)
    run_watched(objective, config, folder, watch, units=lambda _: plan.samples)


def _pair(row: dict[str, list[int]]) -> RankedTree:
    record = Ranking("pair", [], ["", ""], [True, True], [1, 2], [[], []])
    answers = [np.array(row["chosen"]), np.array(row["rejected"])]
    return RankedTree(group(np.array(row["prompt"]), answers), np.array([1, 2]), record)


def run_grpo(folder: Path, plan: Plan, watch: Stopwatch, options: argparse.Namespace) -> None:
    config = GRPOConfig(
        lr=GRPO_LEARNING_RATE,
        precision=options.precision,
        iterations=plan.warmup + plan.steps,
        prompts_per_iteration=plan.samples,
        answers_per_prompt=GROUP,
        max_new_tokens=NEW_TOKENS,
        beta=GRPO_KL,
        epochs=1,
        minibatches=1,
        missing_stop_penalty=0.0,
        checkpoints=0,
    )
    prompts = [Prompt(np.array(row["prompt"]), {}) for row in read_samples(folder)]
    model = load_model(folder / "model")
    objective = GRPOObjective(model, EvenShare(), prompts, config, stop_ids=(END,))
    run_watched(objective, config, folder, watch, units=lambda _: plan.samples * GROUP)


def run_watched(
    objective: Objective[Any],
    config: TrainConfig,
    folder: Path,
    watch: Stopwatch,
    *,
    units: Callable[[dict[str, float]], float],
) -> None:
    """Train with the stopwatch at the end of every iteration."""
    original = objective.after_iteration

    def timed(iteration: int, metrics: dict[str, float]) -> list[str]:
        lines = original(iteration, metrics)
        watch.add_loss(metrics["loss"])
        watch.count(units(metrics))
        watch.end_step()
        return lines

    objective.after_iteration = timed  # type: ignore[method-assign]
    with TemporaryDirectory(dir=folder) as scratch:  # an old checkpoint would be resumed
        run = Path(scratch)
        train(objective, config, StageContext({}, {}, run, run, Silence(), {}))


RUNS = {"pretrain": run_pretrain, "sft": run_sft, "lora": run_sft, "dpo": run_dpo, "grpo": run_grpo}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=sorted(RUNS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="fp32")
    parser.add_argument("--optimizer", choices=["adamw", "muon"], default="adamw")
    parser.add_argument("--eager", action="store_true", help="do not compile decoder layers")
    parser.add_argument("--micro", type=int, default=0, help="tokens of a microbatch; sft, lora")
    parser.add_argument("--full", action="store_true", help="train all weights, without LoRA")
    options = parser.parse_args()
    plan = read_plan(options.folder)
    watch = Stopwatch(plan.warmup)
    dtype = pick_dtype(options.precision)
    peak = measure_peak_flops(dtype)
    RUNS[options.kind](options.folder, plan, watch, options)
    peak = max(peak, measure_peak_flops(dtype))  # the better of two moments of a shared machine
    print(json.dumps({**watch.result(), "gemm_peak_flops": peak}), flush=True)


if __name__ == "__main__":
    main()
