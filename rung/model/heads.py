"""Heads on a language model: one number for an answer, one number for a token.

T tokens, S segments, A answers (segments with a parent), W width
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from rung.errors import ArtefactError
from rung.model.attention import TorchForest
from rung.model.forward import hidden_states
from rung.model.load import load_model, save_model

HEAD_FILE = "head.safetensors"
REWARD_FILE = "reward.json"


def answer_ends(forest: TorchForest) -> Tensor:
    """Index of the last token of each answer [A], in forest order."""
    children = np.flatnonzero(forest.host.seg_parent >= 0)
    return forest.seg_end[torch.from_numpy(children).to(forest.seg_end.device)] - 1


class RewardModel(nn.Module):
    """A backbone with a linear head on the hidden state of an answer's last token.

    score = (head(hidden) - shift) * scale; shift and scale make the scores of the training
    answers mean 0 and standard deviation 1, so that penalties and KL coefficients keep their
    meaning from one reward model to the next.
    """

    def __init__(self, backbone: PreTrainedModel, *, shift: float = 0.0, scale: float = 1.0):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(int(backbone.config.hidden_size), 1)
        nn.init.zeros_(self.head.weight)  # the first loss is that of a coin, whatever the backbone
        nn.init.zeros_(self.head.bias)
        self.shift, self.scale = shift, scale

    def raw_scores(self, forest: TorchForest) -> Tensor:
        """Scores before shift and scale, float32 [A], differentiable."""
        hidden = hidden_states(self.backbone, forest)
        return self._head(hidden.index_select(0, answer_ends(forest)))

    def scores(self, forest: TorchForest) -> Tensor:
        """Normalised scores, float32 [A]."""
        return (self.raw_scores(forest) - self.shift) * self.scale

    def scores_and_features(self, forest: TorchForest) -> tuple[Tensor, Tensor]:
        """Scores [A], and the hidden states that predict each trained token [N, W] (a critic's
        input, for which the backbone need not run again)."""
        hidden = hidden_states(self.backbone, forest)
        raw = self._head(hidden.index_select(0, answer_ends(forest)))
        features = hidden.index_select(0, forest.predictor).float()
        return (raw - self.shift) * self.scale, features

    def _head(self, hidden: Tensor) -> Tensor:
        # Outside of autocast: a score rounded to bf16 would tie answers that differ.
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.float()).squeeze(-1)


class ValueHead(nn.Module):
    """Two layers on frozen features; starts as the constant 0.

    Adam moves a weight by about the learning rate an update, whatever the gradient. At a rate
    that suits a policy a new head would need thousands of updates; `gain` on its output makes it
    as fast as a head with a learning rate of its own.
    """

    gain = 16.0

    def __init__(self, width: int, *, seed: int = 0):
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, 1)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.inner.weight.normal_(std=width**-0.5, generator=generator)
            self.inner.bias.zero_()
            self.outer.weight.zero_()
            self.outer.bias.zero_()

    def forward(self, features: Tensor) -> Tensor:
        """Values float32 [N] of features [N, W]."""
        with torch.autocast(features.device.type, enabled=False):
            normed = nn.functional.layer_norm(features.float(), features.shape[-1:])
            return self.gain * self.outer(torch.tanh(self.inner(normed))).squeeze(-1)


def save_reward_model(model: RewardModel, folder: Path, record: dict[str, Any]) -> None:
    """Backbone, head.safetensors (weight [1, W], bias [1]) and reward.json: `record` (figures)
    with the shift and scale of the scores added."""
    save_model(model.backbone, folder)
    head = {"weight": model.head.weight, "bias": model.head.bias}
    save_file({k: v.detach().float().contiguous() for k, v in head.items()}, folder / HEAD_FILE)
    whole = {**record, "shift": model.shift, "scale": model.scale}
    (folder / REWARD_FILE).write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")


def load_reward_model(
    folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> RewardModel:
    """The reward model of an artefact folder; ArtefactError when the folder is not one."""
    missing = [name for name in (HEAD_FILE, REWARD_FILE) if not (folder / name).is_file()]
    if missing:
        raise ArtefactError(
            f"{folder.name} is not a reward model: no {' and no '.join(missing)}; "
            "make one with `rung reward`"
        )
    record = json.loads((folder / REWARD_FILE).read_text())
    backbone = load_model(folder, dtype=dtype, device=device)
    model = RewardModel(backbone, shift=float(record["shift"]), scale=float(record["scale"]))
    model.head.load_state_dict(load_file(folder / HEAD_FILE))
    return model.to(device).eval()
