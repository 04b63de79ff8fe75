"""How far a model moved from its reference on its own answers, and what the reward model says.

N answer tokens, V vocabulary
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear, log_softmax

from rung.evals.answers import Answer
from rung.model.attention import TorchForest, to_torch
from rung.model.forward import hidden_states, output_head
from rung.model.heads import RewardModel
from rung.tokens.forest import Tree, group, pack

ANSWERS_PER_BATCH = 16


def answer_kl(model: Any, reference: Any, answers: Sequence[Answer]) -> np.ndarray:
    """KL(model || reference) in nats summed over the tokens of each answer, float64 [answers].

    At every position of the model's answer the divergence of the two next-token distributions is
    computed over the whole vocabulary, at temperature 1: no sampling noise, never negative.
    """
    values = []
    device = next(model.parameters()).device
    with torch.inference_mode():
        for part in _parts(answers):
            forest = to_torch(pack(part), device)
            p, q = _log_probabilities(model, forest), _log_probabilities(reference, forest)
            gap = (p.exp() * (p - q)).sum(-1).double()
            sums = torch.zeros(len(part), dtype=torch.float64, device=device)
            tree = torch.from_numpy(forest.host.seg_tree).to(device)[forest.target_seg]
            values.append(sums.index_add(0, tree, gap).cpu().numpy())
    return np.concatenate(values) if values else np.zeros(0)


def answer_rewards(reward: RewardModel, answers: Sequence[Answer]) -> np.ndarray:
    """The reward model's normalised score of each answer, float64 [answers]."""
    device = next(reward.parameters()).device
    scores = []
    with torch.inference_mode():
        for part in _parts(answers):
            forest = to_torch(pack(part), device)
            scores.append(reward.scores(forest).double().cpu().numpy())
    return np.concatenate(scores) if scores else np.zeros(0)


def _parts(answers: Sequence[Answer]) -> list[list[Tree]]:
    trees = [group(answer.prompt, [answer.ids]) for answer in answers]
    return [trees[i : i + ANSWERS_PER_BATCH] for i in range(0, len(trees), ANSWERS_PER_BATCH)]


def _log_probabilities(model: Any, forest: TorchForest) -> Tensor:
    """log p [N, V] at each answer token."""
    head = output_head(model)
    rows = hidden_states(model, forest).index_select(0, forest.predictor)
    logits = linear(rows, head.weight, head.bias).float() * head.scale
    if head.softcap:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    return log_softmax(logits, -1)
