"""What TRL's own trainers make of a batch of pairs: loss and gradient norm of each objective.

Run by the peers' Python, from check_preferences.py. The last line is JSON.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from workload import MAX_CONVERSATION, read_samples, words

BETA = 0.3


def rows_of(folder: Path) -> list[dict[str, str]]:
    rows = [{part: words(ids) for part, ids in row.items()} for row in read_samples(folder)]
    for row in rows:  # the tokenizer splits at blanks: none may be lost between the parts
        row["chosen"], row["rejected"] = " " + row["chosen"], " " + row["rejected"]
    return rows


def options(folder: Path, batch: int, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "trl"),
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": batch,
        "gradient_checkpointing": False,
        "report_to": [],
        "disable_tqdm": True,
        "beta": BETA,
        "max_length": 2 * MAX_CONVERSATION,
        **more,
    }


def load(folder: Path, name: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder / name)


def value(trainer: Any) -> dict[str, float]:
    """Loss of the first batch, and the norm of its gradient."""
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    grads = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    return {"loss": float(loss.detach()), "grad_norm": float(torch.nn.utils.get_total_norm(grads))}


DPO = {
    "dpo": {"loss_type": ["sigmoid"]},
    "dpo per_token": {"loss_type": ["sigmoid_norm"]},
    "dpo hinge": {"loss_type": ["hinge"]},
    "dpo robust": {"loss_type": ["robust"], "label_smoothing": 0.1},
    "ipo": {"loss_type": ["ipo"]},
    "apo": {"loss_type": ["apo_zero"]},
}


def main() -> None:
    logging.disable(logging.WARNING)
    folder = Path(sys.argv[1])
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    rows = rows_of(folder)
    pairs = Dataset.from_list(rows)
    found = {}
    for name, loss in DPO.items():
        trainer: Any = DPOTrainer(
            model=load(folder, "policy"),
            ref_model=load(folder, "model"),
            args=DPOConfig(**options(folder, len(rows), **loss)),
            train_dataset=pairs,
            processing_class=tokenizer,
        )
        found[name] = value(trainer)
    for name, smoothing in (("simpo", 0.0), ("simpo smoothed", 0.1)):
        arguments = CPOConfig(
            **options(folder, len(rows), loss_type="simpo", cpo_alpha=0.0, simpo_gamma=0.5),
            label_smoothing=smoothing,
        )
        trainer = CPOTrainer(
            model=load(folder, "policy"),
            args=arguments,
            train_dataset=pairs,
            processing_class=tokenizer,
        )
        found[name] = value(trainer)
    trainer = ORPOTrainer(
        model=load(folder, "policy"),
        args=ORPOConfig(**options(folder, len(rows))),
        train_dataset=pairs,
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    # without its likelihood term, which TRL takes over the prompts, too
    loss, metrics = trainer.get_batch_loss_metrics(trainer.model, batch)
    found["orpo without nll"] = {"loss": float(loss.detach()) - metrics["nll_loss"]}
    judged = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row, side in zip(rows, ("chosen", "rejected") * len(rows), strict=False)
    ]
    arguments = KTOConfig(
        **options(folder, len(rows)), train_sampling_strategy="sequential", undesirable_weight=1.3
    )
    trainer = KTOTrainer(
        model=load(folder, "policy"),
        ref_model=load(folder, "model"),
        args=arguments,
        train_dataset=Dataset.from_list(judged),
        processing_class=tokenizer,
    )
    found["kto"] = value(trainer)
    # noted under "train" or "eval", as the model is at the time
    found["kto"]["kl"] = next(m["kl"][-1] for m in trainer._metrics.values() if m["kl"])
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
