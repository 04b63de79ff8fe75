"""Pre-training by litgpt's own pretrain.setup; run by the peers' Python. See docs/benchmarks.md."""

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Any

import litgpt.pretrain
import numpy as np
import torch
from litgpt.args import EvalArgs, TrainArgs
from litgpt.config import Config
from litgpt.data import DataModule
from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
from safetensors.torch import load_file
from stopwatch import Stopwatch
from torch.utils.data import DataLoader, Dataset
from workload import LEARNING_RATE, ROW, Shape, read_plan, read_shape


class TimedRows(Dataset):
    """Rows of ROW + 1 tokens. The fetch of a step's first row ends the step before it.

    The loader works in this process and fetches nothing ahead, so what lies between two such
    fetches is exactly one step.
    """

    def __init__(self, path: Path, watch: Stopwatch | None, samples: int) -> None:
        self.rows = torch.from_numpy(np.load(path))
        self.watch, self.samples, self.fetched = watch, samples, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.watch is not None:
            if self.fetched and self.fetched % self.samples == 0:
                self.watch.count(self.samples * ROW)
                self.watch.end_step()
            self.fetched += 1
        return self.rows[index]


class Data(DataModule):
    """The rows of the workload, in order."""

    def __init__(self, path: Path, watch: Stopwatch, samples: int) -> None:
        super().__init__()
        self.path, self.watch, self.samples, self.batch = path, watch, samples, 1

    def connect(self, tokenizer=None, batch_size=1, max_seq_length=None):  # type: ignore[no-untyped-def]
        self.batch = batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TimedRows(self.path, self.watch, self.samples), batch_size=self.batch)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TimedRows(self.path, None, self.samples), batch_size=self.batch)


def litgpt_config(shape: Shape) -> Config:
    """The same Llama in litgpt's words."""
    heads = shape.width // 64
    return Config(
        name="bench",
        block_size=2048,
        vocab_size=shape.vocab,
        padded_vocab_size=shape.vocab,
        n_layer=shape.layers,
        n_embd=shape.width,
        n_head=heads,
        n_query_groups=heads,
        head_size=64,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=1e-6,
        mlp_class_name="LLaMAMLP",
        intermediate_size=shape.inner,
    )


def write_weights(model: Path, out: Path, config: Config) -> None:
    """The workload's weights under litgpt's names, where its setup looks for them."""
    weights: dict[str, torch.Tensor] = {}
    copy_weights_hf_llama(config, {}, weights, load_file(model / "model.safetensors"))
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    out.mkdir(parents=True, exist_ok=True)
    torch.save(weights, out / "lit_model.pth")


def watch_loss(watch: Stopwatch, *, share: float) -> None:
    """Shows the losses of litgpt's training to the stopwatch, not those of its trial validation.

    share: the part of a step that a microbatch is.
    """
    original = litgpt.pretrain.chunked_cross_entropy

    def observed(*args: Any, **kwargs: Any) -> torch.Tensor:
        loss = original(*args, **kwargs)
        if loss.requires_grad and loss.device.type != "meta":
            watch.add_loss(float(loss.detach()) * share)
        return loss

    litgpt.pretrain.chunked_cross_entropy = observed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--micro", type=int, default=0, help="rows of a microbatch")
    options = parser.parse_args()
    plan = read_plan(options.folder)
    micro = options.micro or plan.samples
    watch = Stopwatch(plan.warmup)
    config = litgpt_config(read_shape(options.folder))
    start = options.folder / "litgpt" / "start"
    write_weights(options.folder / "model", start, config)
    watch_loss(watch, share=micro / plan.samples)
    # the final checkpoint comes after the last measured step and reads the command line
    litgpt.pretrain.save_checkpoint = lambda *args, **kwargs: None
    with contextlib.redirect_stdout(sys.stderr):
        litgpt.pretrain.setup(
            "bench",
            model_config=config,
            out_dir=options.folder / "litgpt" / "out",
            precision="bf16-mixed" if options.bf16 else "32-true",
            initial_checkpoint_dir=start.absolute(),
            data=Data(options.folder / "rows.npy", watch, plan.samples),
            train=TrainArgs(
                save_interval=None,
                log_interval=1000,
                global_batch_size=plan.samples,
                micro_batch_size=micro,
                max_tokens=(plan.warmup + plan.steps) * plan.samples * ROW,
                max_seq_length=ROW,
                max_norm=1.0,
                min_lr=LEARNING_RATE,
                lr_warmup_steps=1,
                tie_embeddings=True,
            ),
            eval=EvalArgs(interval=10**6, max_iters=1, final_validation=False),
            optimizer={
                "class_path": "torch.optim.AdamW",
                "init_args": {"lr": LEARNING_RATE, "weight_decay": 0.0},
            },
            devices=1,
            logger_name="csv",
        )
    watch.print_result()


if __name__ == "__main__":
    main()
