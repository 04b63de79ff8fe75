"""Log-probabilities of a frozen reference model: computed once, kept in the run folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from rung.model.forward import segment_sums, target_logps
from rung.model.precision import autocast, pick_device, pick_dtype
from rung.model.types import PreTrainedModel
from rung.store.artefact import digest
from rung.store.durable import sync_file
from rung.train.optim import TrainConfig
from rung.train.ranked import RankedTree, microbatches


@torch.no_grad()
def answer_logps_of(
    model: PreTrainedModel,
    trees: Sequence[RankedTree],
    *,
    config: TrainConfig,
    microbatch_tokens: int,
) -> list[np.ndarray]:
    """Log-probability of every answer, float32 [K] per tree."""
    device, out = pick_device(config.device), []
    with autocast(pick_dtype(config.precision, device), device):
        for batch in microbatches(trees, max_tokens=microbatch_tokens, device=device):
            per_token, _ = target_logps(model, batch.forest)
            sums = segment_sums(per_token, batch.forest).cpu().numpy()
            answers = sums[batch.forest.host.answers]
            out.extend(np.split(answers, np.cumsum([len(t.ranks) for t in batch.trees])[:-1]))
    return out


def cached_logps(
    model: PreTrainedModel,
    trees: Sequence[RankedTree],
    *,
    config: TrainConfig,
    microbatch_tokens: int,
    folder: Path,
    identity: Mapping[str, Any],
) -> list[np.ndarray]:
    """`answer_logps_of`, from the file that an earlier, killed run of the same identity left.

    identity: everything the numbers depend on (ids of model and feedback, precision, split); it
    is in the file's name, so a change of any of it computes them again.
    """
    key = digest({**identity, "microbatch_tokens": microbatch_tokens})
    path = folder / f"reference-{key[:16]}.safetensors"
    counts = [len(tree.ranks) for tree in trees]
    if path.is_file():
        flat = load_file(path)["logps"]
        if len(flat) == sum(counts):
            return np.split(flat, np.cumsum(counts)[:-1])
    logps = answer_logps_of(model, trees, config=config, microbatch_tokens=microbatch_tokens)
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({"logps": np.concatenate(logps)}, partial, metadata={"identity": json.dumps(key)})
    sync_file(partial)
    partial.replace(path)  # whole or not at all: a kill cannot leave half a file under the name
    return logps
