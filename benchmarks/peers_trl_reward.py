"""A reward model by TRL's RewardTrainer and peft; run by the peers' Python, from harmless.py.

Reads FOLDER/train.jsonl and heldout.jsonl. The last line is JSON: one hit (1, 0, or 1/2 for a tie)
per held-out pair.
"""

import json
import logging
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

MICRO = 1  # pairs in a forward pass: no padding between pairs, and the memory of a laptop


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main(folder: Path, model: str, rate: float, batch: int) -> None:
    logging.disable(logging.WARNING)
    tokenizer = AutoTokenizer.from_pretrained(model)
    trainer = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(
            model, num_labels=1, dtype=torch.float32
        ),
        args=RewardConfig(
            output_dir=str(folder / "trl"),
            use_cpu=True,
            bf16=True,
            num_train_epochs=1,
            per_device_train_batch_size=MICRO,
            gradient_accumulation_steps=batch // MICRO,
            gradient_checkpointing=False,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,
            center_rewards_coefficient=0.01,
            max_length=2048,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(read(folder / "train.jsonl")),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=16,
            lora_alpha=32,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="SEQ_CLS",
            modules_to_save=["score"],
        ),
    )
    trainer.train()
    hits = [hit(trainer.model.eval(), tokenizer, row) for row in read(folder / "heldout.jsonl")]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"hits": hits, "peak_rss_gb": peak}))


@torch.inference_mode()
def hit(model: Any, tokenizer: Any, row: dict[str, Any]) -> float:
    """Both answers in one padded batch, as the trainer itself evaluates them."""
    texts = [tokenizer.apply_chat_template(row[s], tokenize=False) for s in ("chosen", "rejected")]
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chosen, rejected = model(**batch).logits.float().flatten().tolist()
    return 0.5 if chosen == rejected else float(chosen > rejected)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
