"""transformers' generate; run by the peers' Python. Settings: docs/benchmarks.md."""

import argparse
import logging
from pathlib import Path

import torch
from stopwatch import Stopwatch
from transformers import AutoModelForCausalLM
from workload import GROUP, PAD, read_plan, read_samples


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--cache", choices=["dynamic", "static"], default="dynamic")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    plan = read_plan(options.folder)
    watch = Stopwatch(plan.warmup)
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    model = AutoModelForCausalLM.from_pretrained(options.folder / "model", dtype=dtype)
    model.generation_config.eos_token_id = None
    rows = read_samples(options.folder)
    samples = GROUP if options.kind == "group" else 1
    for step in range(plan.warmup + plan.steps):
        mine = rows[step * plan.samples :][: plan.samples]
        width = max(len(row["prompt"]) for row in mine)
        ids = torch.full((len(mine), width), PAD)
        for at, row in enumerate(mine):
            ids[at, width - len(row["prompt"]) :] = torch.tensor(row["prompt"])
        new = max(len(row["answer"]) for row in mine)
        out = model.generate(
            ids,
            attention_mask=(ids != PAD).long(),
            max_new_tokens=new,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=samples,
            pad_token_id=PAD,
            cache_implementation=None if options.cache == "dynamic" else "static",
        )
        assert out.shape == (len(mine) * samples, width + new)
        watch.count(sum(len(row["answer"]) for row in mine) * samples)
        watch.end_step()
    watch.print_result()


if __name__ == "__main__":
    main()
