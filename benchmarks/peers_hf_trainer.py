"""Pre-training by Hugging Face's Trainer; run by the peers' Python. See docs/benchmarks.md."""

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
from stopwatch import Stopwatch
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments
from workload import LEARNING_RATE, ROW, read_plan


class Rows(torch.utils.data.Dataset):
    """Rows of ROW tokens; the model shifts the labels itself, so the last target is left out."""

    def __init__(self, path: Path) -> None:
        self.rows = torch.from_numpy(np.load(path))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.rows[index, :ROW]
        return {"input_ids": row, "labels": row}


class Clock(TrainerCallback):
    """Ends a step of the stopwatch where the Trainer ends one."""

    def __init__(self, watch: Stopwatch, units: float = 0.0) -> None:
        self.watch, self.units = watch, units

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self.watch.count(self.units)
        self.watch.end_step()


class Watched(Trainer):
    """The Trainer, with its first loss shown to the stopwatch."""

    watch: Stopwatch

    def training_step(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        loss = super().training_step(*args, **kwargs)
        self.watch.add_loss(float(loss))  # scaled to its part of the step by the Trainer
        return loss


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--micro", type=int, default=0, help="rows of a microbatch")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    plan = read_plan(options.folder)
    micro = options.micro or plan.samples
    watch = Stopwatch(plan.warmup)
    arguments = TrainingArguments(
        output_dir=str(options.folder / "hf_trainer"),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=plan.samples // micro,
        max_steps=plan.warmup + plan.steps,
        learning_rate=LEARNING_RATE,
        use_cpu=True,
        bf16=options.bf16,
        report_to=[],
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Watched(
        model=AutoModelForCausalLM.from_pretrained(options.folder / "model"),
        args=arguments,
        train_dataset=Rows(options.folder / "rows.npy"),
        callbacks=[Clock(watch, plan.samples * ROW)],
    )
    trainer.watch = watch
    trainer.train()
    watch.print_result()


if __name__ == "__main__":
    main()
