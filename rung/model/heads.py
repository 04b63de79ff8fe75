"""Heads on a language model: one number for an answer, one number for a token.

T tokens, S segments, A answers (segments with a parent), W width, F = 3 W + 2 values of evidence
"""

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rung.errors import ArtefactError
from rung.model.adapters import save_trained, trained_part, using
from rung.model.attention import TorchForest
from rung.model.forward import hidden_states, logps_of, output_head, segment_sums
from rung.model.load import load_model
from rung.model.types import PreTrainedModel

HEAD_FILE = "head.safetensors"
REWARD_FILE = "reward.json"


class AnswerHead(nn.Module):
    """One number for an answer: a linear map of what is known of it, and a small hidden layer.

    What is known (see `RewardModel.evidence`) is brought to mean 0 and standard deviation 1 by
    `standardise`, once, before training. Starts as the constant 0: the first loss is that of a
    coin, whatever the backbone.
    """

    def __init__(self, width: int, *, hidden: int = 64, seed: int = 0):
        super().__init__()
        self.linear = nn.Linear(width, 1)
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, 1, bias=False)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.inner.weight.normal_(std=width**-0.5, generator=generator)
            for zero in (self.inner.bias, self.outer.weight, self.linear.weight, self.linear.bias):
                zero.zero_()

    @torch.no_grad()
    def standardise(self, evidence: Tensor) -> None:
        """Take mean and standard deviation from evidence [A, F] of training answers."""
        self.mean.copy_(evidence.mean(0))
        self.std.copy_(evidence.std(0).clamp(min=1e-4))

    def forward(self, evidence: Tensor) -> Tensor:
        """Scores float32 [A] of evidence [A, F]."""
        # Outside of autocast: a score rounded to bf16 would tie answers that differ.
        with torch.autocast(evidence.device.type, enabled=False):
            known = (evidence.float() - self.mean) / self.std
            bent = self.outer(nn.functional.silu(self.inner(known)))
            return (self.linear(known) + bent).squeeze(-1)


class RewardModel(nn.Module):
    """A backbone, and a head on what the backbone makes of a prompt and its answer.

    score = (head(evidence) - shift) * scale; shift and scale make the scores of the training
    answers mean 0 and standard deviation 1, so that penalties and KL coefficients keep their
    meaning from one reward model to the next.

    adapter: name of the adapter that makes the backbone this model's, where a policy shares it.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        *,
        hidden: int = 64,
        shift: float = 0.0,
        scale: float = 1.0,
        seed: int = 0,
        adapter: str | None = None,
    ):
        super().__init__()
        self.backbone, self.adapter = backbone, adapter
        width = int(backbone.config.hidden_size)
        self.head = AnswerHead(3 * width + 2, hidden=hidden, seed=seed)
        self.shift, self.scale = shift, scale

    def trained(self) -> nn.Module:
        """What an optimizer and a checkpoint need to know: the head, and of the backbone its
        adapter where it has one."""
        part = trained_part(self.backbone)
        if part is self.backbone:
            return self
        return nn.ModuleDict({"backbone": part, "head": self.head})

    def evidence(self, forest: TorchForest) -> Tensor:
        """What the head reads of each answer, float32 [A, 3 W + 2], differentiable.

        Hidden states: of the answer's last token, of the prompt's last, and the mean over the
        answer's tokens. Then the mean log-probability of the answer under the backbone itself,
        and the logarithm of its length. The last token alone is what large models are read by;
        a small one has not got the layers to gather there how sure it was of each word, which
        tells a copied name from a garbled one (docs/training.md has the figures). No gradient
        goes through the log-probability: it is to be read, not to be raised.
        """
        with self._own():
            return self._evidence(hidden_states(self.backbone, forest), forest)

    def raw_scores(self, forest: TorchForest) -> Tensor:
        """Scores before shift and scale, float32 [A], differentiable."""
        return self.head(self.evidence(forest))

    def scores(self, forest: TorchForest) -> Tensor:
        """Normalised scores, float32 [A]."""
        return (self.raw_scores(forest) - self.shift) * self.scale

    def scores_and_features(self, forest: TorchForest) -> tuple[Tensor, Tensor]:
        """Scores [A], and the hidden states that predict each trained token [N, W] (a critic's
        input, for which the backbone need not run again)."""
        with self._own():
            hidden = hidden_states(self.backbone, forest)
        raw = self.head(self._evidence(hidden, forest))
        features = hidden.index_select(0, forest.predictor).float()
        return (raw - self.shift) * self.scale, features

    def _own(self) -> AbstractContextManager[Any]:
        return using(self.backbone, self.adapter) if self.adapter else nullcontext()

    def _evidence(self, hidden: Tensor, forest: TorchForest) -> Tensor:
        own = forest.host.answers
        answers = torch.from_numpy(own).to(hidden.device)
        prompts = torch.from_numpy(forest.host.seg_parent[own]).to(hidden.device)
        with torch.no_grad():
            logps, _ = logps_of(output_head(self.backbone), hidden, forest)
        states = hidden.float()
        at = torch.from_numpy(forest.host.target_at).to(hidden.device)
        count = segment_sums(torch.ones_like(logps), forest)[answers, None].clamp(min=1)
        total = states.new_zeros(forest.num_segments, states.shape[1])
        total = total.index_add(0, forest.target_seg, states.index_select(0, at))
        return torch.cat(
            [
                states.index_select(0, forest.seg_end[answers] - 1),
                states.index_select(0, forest.seg_end[prompts] - 1),
                total[answers] / count,
                segment_sums(logps, forest)[answers, None] / count,
                count.log(),
            ],
            dim=1,
        )


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


def save_reward_model(
    model: RewardModel, folder: Path, record: dict[str, Any], *, base: str
) -> None:
    """Backbone, head.safetensors (the tensors of `AnswerHead`) and reward.json: `record` (figures)
    with the shift and scale of the scores added.

    base: id of the artefact that the backbone was loaded from; of one with an adapter only the
    adapter is written.
    """
    save_trained(model.backbone, folder, base=base)
    head = model.head.state_dict()
    save_file({k: v.detach().float().contiguous() for k, v in head.items()}, folder / HEAD_FILE)
    whole = {**record, "shift": model.shift, "scale": model.scale}
    (folder / REWARD_FILE).write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")


def load_reward_model(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    backbone: PreTrainedModel | None = None,
    adapter: str | None = None,
) -> RewardModel:
    """The reward model of an artefact folder; ArtefactError when the folder is not one.

    backbone: a model in memory that is this one's with `adapter` on; else it is loaded.
    """
    missing = [name for name in (HEAD_FILE, REWARD_FILE) if not (folder / name).is_file()]
    if missing:
        raise ArtefactError(
            f"{folder.name} is not a reward model: no {' and no '.join(missing)}; "
            "make one with `rung reward`"
        )
    record = json.loads((folder / REWARD_FILE).read_text())
    tensors = load_file(folder / HEAD_FILE)
    if "inner.weight" not in tensors:
        raise ArtefactError(
            f"{folder.name}: its {HEAD_FILE} is of an older form; train it again with `rung reward`"
        )
    model = RewardModel(
        load_model(folder, dtype=dtype, device=device) if backbone is None else backbone,
        hidden=len(tensors["inner.weight"]),
        shift=float(record["shift"]),
        scale=float(record["scale"]),
        adapter=adapter,
    )
    model.head.load_state_dict(tensors)
    return model.to(device).eval()
