"""SFT, DPO and GRPO by TRL; run by the peers' Python. Settings: docs/benchmarks.md."""

import argparse
import logging
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from stopwatch import Stopwatch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from workload import (
    ALPHA,
    GROUP,
    GRPO_KL,
    GRPO_LEARNING_RATE,
    LEARNING_RATE,
    MAX_CONVERSATION,
    NEW_TOKENS,
    PAD,
    RANK,
    Plan,
    read_plan,
    read_samples,
    words,
)

PACKED_ROWS = 2  # rows of MAX_CONVERSATION tokens hold about the conversations of one step


class Clock(TrainerCallback):
    """Ends a step of the stopwatch where the trainer ends one. units: what every step is worth."""

    def __init__(self, watch: Stopwatch, units: float = 0.0) -> None:
        self.watch, self.units = watch, units

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self.watch.count(self.units)
        self.watch.end_step()


class WatchedSFT(SFTTrainer):
    """SFTTrainer that counts the real tokens of its microbatches: pads are no work done."""

    watch: Stopwatch

    def training_step(self, model, inputs, *args, **kwargs):  # type: ignore[no-untyped-def]
        self.watch.count(int((inputs["input_ids"] != PAD).sum()))
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.watch.add_loss(float(loss))  # scaled to its part of the step by the Trainer
        return loss


class WatchedDPO(DPOTrainer):
    """DPOTrainer that shows its first loss to the stopwatch."""

    watch: Stopwatch

    def training_step(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        loss = super().training_step(*args, **kwargs)
        self.watch.add_loss(float(loss))  # scaled to its part of the step by the Trainer
        return loss


def common(folder: Path, *, bf16: bool, steps: int, micro: int, accumulate: int) -> dict[str, Any]:
    """Settings that all three trainers get: no logging, no saving, no gradient checkpointing."""
    return {
        "output_dir": str(folder / "trl"),
        "use_cpu": True,
        "bf16": bf16,
        "max_steps": steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulate,
        "gradient_checkpointing": False,
        "report_to": [],
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def run_sft(folder: Path, plan: Plan, watch: Stopwatch, options: argparse.Namespace) -> None:
    rows = [
        {
            "input_ids": [*row["prompt"], *row["answer"]],
            "completion_mask": [0] * len(row["prompt"]) + [1] * len(row["answer"]),
        }
        for row in read_samples(folder)
    ]
    steps = plan.warmup + plan.steps
    micro = options.micro or plan.samples // 2
    accumulate = plan.samples // micro
    if options.packing:
        # the whole data set once, as in the other cells, however many rows it packs into
        num_tokens = sum(len(row["input_ids"]) for row in rows)
        steps = max(plan.warmup + 1, num_tokens // (PACKED_ROWS * MAX_CONVERSATION))
        micro, accumulate = PACKED_ROWS, 1
    arguments = SFTConfig(
        **common(folder, bf16=options.bf16, steps=steps, micro=micro, accumulate=accumulate),
        learning_rate=LEARNING_RATE,
        max_length=MAX_CONVERSATION,
        completion_only_loss=True,
        packing=options.packing,
    )
    lora = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    trainer = WatchedSFT(
        model=AutoModelForCausalLM.from_pretrained(folder / "model"),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        callbacks=[Clock(watch)],
        peft_config=lora if options.kind == "lora" else None,
    )
    trainer.watch = watch
    trainer.train()


def run_dpo(folder: Path, plan: Plan, watch: Stopwatch, options: argparse.Namespace) -> None:
    rows = [{part: words(ids) for part, ids in row.items()} for row in read_samples(folder)]
    for row in rows:  # the tokenizer splits at blanks: none may be lost between the parts
        row["chosen"], row["rejected"] = " " + row["chosen"], " " + row["rejected"]
    micro = options.micro or plan.samples
    arguments = DPOConfig(
        **common(
            folder,
            bf16=options.bf16,
            steps=plan.warmup + plan.steps,
            micro=micro,
            accumulate=plan.samples // micro,
        ),
        learning_rate=LEARNING_RATE,
        beta=0.1,
        max_length=2 * MAX_CONVERSATION,
        precompute_ref_log_probs=True,
    )
    trainer = WatchedDPO(
        model=AutoModelForCausalLM.from_pretrained(folder / "model"),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        callbacks=[Clock(watch, plan.samples)],
    )
    trainer.watch = watch
    trainer.train()


def even_share(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """The reward: the share of even token ids."""
    return [sum(i % 2 == 0 for i in ids) / max(1, len(ids)) for ids in completion_ids]


def run_grpo(folder: Path, plan: Plan, watch: Stopwatch, options: argparse.Namespace) -> None:
    answers = plan.samples * GROUP
    micro = options.micro or answers // 4
    arguments = GRPOConfig(
        **common(
            folder,
            bf16=options.bf16,
            steps=plan.warmup + plan.steps,
            micro=micro,
            accumulate=answers // micro,
        ),
        learning_rate=GRPO_LEARNING_RATE,
        num_generations=GROUP,
        max_completion_length=NEW_TOKENS,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        beta=GRPO_KL,
        num_iterations=1,
        epsilon=0.2,
        epsilon_high=0.28,
        loss_type="dapo",
        scale_rewards="none",
    )
    trainer = GRPOTrainer(
        model=str(folder / "model"),
        reward_funcs=even_share,
        args=arguments,
        train_dataset=Dataset.from_list(
            [{"prompt": words(r["prompt"])} for r in read_samples(folder)]
        ),
        callbacks=[Clock(watch, answers)],
    )
    trainer.train()


RUNS = {"sft": run_sft, "lora": run_sft, "dpo": run_dpo, "grpo": run_grpo}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=sorted(RUNS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--micro", type=int, default=0, help="samples of a microbatch")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    plan = read_plan(options.folder)
    watch = Stopwatch(plan.warmup)
    RUNS[options.kind](options.folder, plan, watch, options)
    watch.print_result()


if __name__ == "__main__":
    main()
