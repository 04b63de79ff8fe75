"""A rollout: prompts, sampled answers, and what policy, reference and scorer say of them.

P prompts, A = P x samples answers, N answer tokens, W width
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rung.engine.generate import generate
from rung.engine.sampling import Sampling
from rung.errors import DataError
from rung.model.adapters import adapter_off
from rung.model.attention import TorchForest, to_torch
from rung.model.forward import target_logps
from rung.model.precision import autocast
from rung.model.types import PreTrainedModel
from rung.text.rows import read_rows
from rung.tokens.chat import render
from rung.tokens.forest import group, pack
from rung.tokens.tokenizer import Tokenizer
from rung.train.ranked import cut_by_tokens


@dataclass(frozen=True)
class Prompt:
    """A conversation up to the answer, as tokens. row: the dataset row, for its known truth."""

    ids: np.ndarray
    row: Mapping[str, Any]


class Scorer(Protocol):
    """What judges answers: a reward model, or any function of the tokens."""

    def scores_and_features(self, forest: TorchForest) -> tuple[Tensor, Tensor]:
        """Scores [A] of the answers, and features [N, W] of the state before each answer token."""


_WAY_OUT = {
    "prompts.jsonl": "they come from `prompts` of stage instruct, or from `prompts_fraction` of "
    "stage dataset (and its rows without an answer): set one of them above 0",
    "heldout.jsonl": "set `heldout_fraction` of stage dataset above 0, or `eval_prompts` to 0 to "
    "do without a look at held-out prompts",
}


def load_prompts(path: Path, tokenizer: Tokenizer, *, max_tokens: int) -> tuple[list[Prompt], int]:
    """(prompts, number dropped for being longer than max_tokens). The last message of a row is the
    reference answer and is left out. DataError when nothing fits or nothing is there."""
    prompts, dropped = [], 0
    for line, row in read_rows(path, example='{"messages": [{"role": "user", ...}]}'):
        messages = list(row["messages"])
        if messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        where = f"{path.name}:{line}"
        ids = render(tokenizer, messages, generation_prompt=True, where=where).ids
        if len(ids) > max_tokens:
            dropped += 1
        else:
            prompts.append(Prompt(ids, row))
    if not prompts and not dropped:
        raise DataError(f"{path.name} of the dataset has no prompts; {_WAY_OUT[path.name]}")
    if not prompts:
        raise DataError(
            f"{path.name}: no prompt of at most {max_tokens} tokens ({dropped} longer); lower "
            "max_new_tokens, shorten the prompts, or take a model with a longer context"
        )
    return prompts, dropped


@dataclass(eq=False)
class Rollout:
    """Answers in microbatches; arrays are flat over all microbatches, in forest order.

    updates: microbatch indices of each optimizer update of an epoch. lengths, stopped, scores: [A].
    logps, reference: float32 [N] of each microbatch; features: [N, W] of each. entropy: [N].
    """

    forests: list[TorchForest]
    updates: list[list[int]]
    lengths: np.ndarray
    stopped: np.ndarray
    scores: np.ndarray
    logps: list[Tensor]
    reference: list[Tensor]
    features: list[Tensor]
    entropy: np.ndarray

    def flat(self, parts: Sequence[Tensor]) -> np.ndarray:
        """Per-microbatch tensors as one float64 array."""
        return torch.cat(list(parts)).cpu().numpy().astype(np.float64)

    def split(self, values: np.ndarray) -> list[Tensor]:
        """A flat array [N] as one float32 tensor per microbatch."""
        cuts = np.cumsum([len(forest.target) for forest in self.forests])[:-1]
        parts = np.split(values.astype(np.float32), cuts)
        device = self.forests[0].ids.device
        return [torch.from_numpy(part).to(device) for part in parts]


@dataclass(frozen=True)
class RolloutPlan:
    """How rollouts are sampled and cut. stop_ids end an answer; a plan without them never stops."""

    num_answers: int
    max_new_tokens: int
    stop_ids: tuple[int, ...]
    minibatches: int
    microbatch_tokens: int
    dtype: torch.dtype
    device: torch.device


def make_rollout(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    scorer: Scorer,
    prompts: Sequence[Prompt],
    *,
    plan: RolloutPlan,
    seed: int,
) -> Rollout:
    """Sample answers at temperature 1 (the distribution that is trained) and judge them.

    reference: a frozen model, or the policy itself, which then means: with its adapter off.

    Log-probabilities come from the training forward over the microbatches of the first epoch, not
    from the sampler: so the first ratio is exactly 1, whatever the sampler's precision.
    """
    sampling = Sampling(max_new_tokens=plan.max_new_tokens, seed=seed, stop_ids=plan.stop_ids)
    samples = generate(
        policy,
        [prompt.ids for prompt in prompts],
        sampling,
        num_samples=plan.num_answers,
        dtype=plan.dtype,
    )
    trees = [
        group(prompt.ids, [answer.ids for answer in answers])
        for prompt, answers in zip(prompts, samples, strict=True)
    ]
    forests: list[TorchForest] = []
    updates: list[list[int]] = []
    for part in np.array_split(np.arange(len(trees)), min(plan.minibatches, len(trees))):
        chosen = [trees[i] for i in part]
        runs = cut_by_tokens(chosen, plan.microbatch_tokens)
        updates.append(list(range(len(forests), len(forests) + len(runs))))
        forests.extend(to_torch(pack([chosen[i] for i in run]), plan.device) for run in runs)
    flat = [answer for answers in samples for answer in answers]
    judged = [_judge(policy, reference, scorer, forest, plan) for forest in forests]
    return Rollout(
        forests=forests,
        updates=updates,
        lengths=np.array([len(answer.ids) for answer in flat]),
        stopped=np.array([answer.stopped for answer in flat]),
        scores=torch.cat([j[3] for j in judged]).cpu().numpy().astype(np.float64),
        logps=[j[0] for j in judged],
        reference=[j[2] for j in judged],
        features=[j[4] for j in judged],
        entropy=torch.cat([j[1] for j in judged]).cpu().numpy().astype(np.float64),
    )


@torch.no_grad()  # not inference_mode: the features go through a trained head later
def _judge(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    scorer: Scorer,
    forest: TorchForest,
    plan: RolloutPlan,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    with autocast(plan.dtype, plan.device):
        logp, entropy = target_logps(policy, forest)
        with adapter_off(policy) if reference is policy else nullcontext():
            ref_logp, _ = target_logps(reference, forest)
        scores, features = scorer.scores_and_features(forest)
    return logp, entropy, ref_logp, scores, features
