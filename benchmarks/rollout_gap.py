"""How far the engine's log-probabilities lie from the training forward's, token by token.

    python benchmarks/rollout_gap.py [MODEL-FOLDER] [--precision fp32,bf16]

Without a folder: the random model of 10 M parameters of the other benchmarks. Prompts are texts
that the model samples itself after its first token; answers are sampled as in a rollout, several of
each prompt, and read again by the forward that training uses. ratio = p(training) / p(engine), what
PPO and GRPO would multiply by if they took the engine's word. The last line is JSON.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from workload import SHAPES, build_model

from rung.engine.generate import generate
from rung.engine.sampling import Sampling
from rung.model.attention import to_torch
from rung.model.forward import target_logps
from rung.model.load import load_model
from rung.model.precision import autocast, has_bf16, pick_dtype
from rung.model.types import PreTrainedModel
from rung.tokens.forest import Tree, group, pack
from rung.train.ranked import cut_by_tokens

MICROBATCH = 4096  # tokens


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--precision", default="fp32,bf16")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8, help="answers of a prompt")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=128)
    options = parser.parse_args()
    with TemporaryDirectory() as scratch:
        folder = options.folder
        if folder is None:
            folder = Path(scratch)
            build_model(folder, SHAPES["10m"], seed=0)
        model = load_model(folder)
    result = {}
    for precision in options.precision.split(","):
        if precision == "bf16" and not has_bf16():
            print("bf16: this processor has no such products")
            continue
        result |= measure(model, precision, options)
    print(json.dumps(result))


def measure(model: PreTrainedModel, precision: Any, options: argparse.Namespace) -> dict[str, Any]:
    """The engine against training in `precision`; in bf16 both against training in float32, too."""
    dtype = pick_dtype(precision)
    first = np.array([model.config.bos_token_id or 0], dtype=np.int32)
    begun = generate(
        model,
        [first],
        Sampling(max_new_tokens=options.prompt_tokens - 1, seed=1),
        num_samples=options.prompts,
        dtype=dtype,
    )
    prompts = [np.concatenate([first, sample.ids]) for sample in begun[0]]
    answers = generate(
        model,
        prompts,
        Sampling(max_new_tokens=options.new_tokens, seed=2),
        num_samples=options.samples,
        num_logps=0,
        dtype=dtype,
    )
    trees = [group(p, [a.ids for a in some]) for p, some in zip(prompts, answers, strict=True)]
    parts = [answer.logps.chosen for some in answers for answer in some if answer.logps]
    engine = np.concatenate(parts).astype(np.float64)
    training = training_logps(model, trees, dtype)
    found = {precision: describe(f"{precision}: engine / training", training - engine)}
    if dtype != torch.float32:
        exact = training_logps(model, trees, torch.float32)
        for name, values in (("engine", engine), ("training", training)):
            label = f"{precision} {name} / fp32 training"
            found[label] = describe(label, exact - values)
    return found


def training_logps(model: PreTrainedModel, trees: list[Tree], dtype: torch.dtype) -> np.ndarray:
    """Of all answer tokens in the order of the trees, float64."""
    found = []
    with torch.no_grad(), autocast(dtype, model.device):
        for run in cut_by_tokens(trees, MICROBATCH):
            logps, _ = target_logps(model, to_torch(pack([trees[i] for i in run]), model.device))
            found.append(logps.double().numpy())
    return np.concatenate(found)


def describe(title: str, gap: np.ndarray) -> dict[str, float]:
    """Figures of log p(second) - log p(first) over tokens, and of the ratio."""
    size, off = np.abs(gap), np.abs(np.expm1(gap))
    figures = {
        "tokens": len(gap),
        "mean_gap": float(gap.mean()),
        "mean_abs_gap": float(size.mean()),
        "p99_abs_gap": float(np.quantile(size, 0.99)),
        "max_abs_gap": float(size.max()),
        "mean_ratio": float(np.exp(gap).mean()),
        "p99_ratio_off_one": float(np.quantile(off, 0.99)),
        "max_ratio_off_one": float(off.max()),
    }
    shown = "  ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.3g}"
        for name, value in figures.items()
    )
    print(f"{title}\n  {shown}", flush=True)
    return figures


if __name__ == "__main__":
    main()
