"""What preference objectives share: judged answers in forests and their log-probabilities.

An objective says how the reward of an answer follows from its log-probability, and what the loss
makes of rewards. All answers of a prompt share its tokens, so K answers cost K + 1 segments. The
stage around an objective is rung/train/preference_stage.py.

    A answers of a microbatch or of a whole split
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from rung.feedback.schema import Ranking
from rung.model.adapters import trained_part
from rung.model.forward import segment_sums, target_logps
from rung.model.precision import pick_device
from rung.model.types import PreTrainedModel
from rung.store.context import StageContext
from rung.train.loop import LossSums, Objective
from rung.train.optim import TrainConfig
from rung.train.ranked import EpochOrder, RankedForest, RankedTree, microbatches


class PreferenceConfig(TrainConfig):
    """What all preference stages have in common."""

    epochs: int = Field(2, ge=1, description="passes over the training rankings")
    rankings_per_update: int = Field(16, ge=1, description="prompts in one optimizer update")
    heldout_fraction: float = Field(0.1, gt=0, lt=1, description="share of prompts held out")
    nll_weight: float = Field(0.0, ge=0, description="weight of the chosen answers' likelihood")
    optimizer: Literal["muon", "adamw"] = Field("adamw", description="fine-tuning keeps to AdamW")
    lr: float = Field(1e-4, gt=0, description="peak AdamW learning rate")
    adapter_lr: ClassVar[float] = 1e-4
    takes_dropout: ClassVar[bool] = False


@dataclass(frozen=True)
class Answers:
    """Answers as policy and reference see them, float32 [A] each, in the order of their trees.

    logps: log-probability, differentiable in training. reference: the same by the reference, zeros
    where the objective has none. lengths: tokens.
    """

    logps: Tensor
    reference: Tensor
    lengths: Tensor


def log_ratios(answers: Answers, *, per_token: bool = False) -> Tensor:
    """log pi(y) - log pi_ref(y) [A], the sum over the answer or its mean per token."""
    ratios = answers.logps - answers.reference
    return ratios / answers.lengths if per_token else ratios


def mean_logps(answers: Answers) -> Tensor:
    """log pi(y) per token [A]."""
    return answers.logps / answers.lengths


class PreferenceObjective(Objective[RankedForest]):
    """Judged answers in, a policy out. Subclasses give `rewards`, `pairs`, `judge` and a name.

    reference: log-probabilities [K] of the answers of each of `reference_trees`.
    """

    has_reference: ClassVar[bool] = True
    uses_margins: ClassVar[bool] = False  # the lead that a pair's row demands
    unusable: ClassVar[str]  # what is wrong with judgements that are left out

    def __init__(
        self,
        model: PreTrainedModel,
        trees: Sequence[RankedTree],
        reference: Sequence[np.ndarray],
        config: Any,
    ):
        self.model, self.trees, self.config = model, trees, config
        self.reference = dict(zip(map(id, trees), reference, strict=self.has_reference))
        self.device = pick_device(config.device)
        self.order = EpochOrder(len(trees), config.rankings_per_update, config.seed)

    @classmethod
    def usable(cls, records: Sequence[Ranking], config: Any) -> list[Ranking]:
        """What can be trained on; DataError where nothing can."""
        raise NotImplementedError

    @classmethod
    def reference_trees(
        cls, trees: Sequence[RankedTree], config: Any, *, limit: int
    ) -> list[RankedTree]:
        """The trees whose answers the reference must score before training. limit: the model's
        context."""
        return list(trees) if cls.has_reference else []

    def rewards(self, answers: Answers) -> Tensor:
        """The implicit reward of each answer [A]."""
        raise NotImplementedError

    def pairs(self, tree: RankedTree) -> np.ndarray:
        """(better, worse) answers of a tree [P, 2]: what accuracy is counted on."""
        raise NotImplementedError

    def judge(self, answers: Answers, trees: Sequence[RankedTree]) -> LossSums:
        """Loss and metrics of the answers of `trees`; no model is asked."""
        raise NotImplementedError

    def extra_forwards(self) -> float:
        """Passes without a gradient per trained token: the reference reads everything once."""
        return 1 / self.config.epochs if self.has_reference else 0.0

    def start(self, context: StageContext) -> None:
        """Says what is worth knowing before training."""

    def look(self, iteration: int) -> None:
        """What must be known of all answers of an update before its first microbatch."""

    def modules(self) -> torch.nn.Module:
        return trained_part(self.model)

    def num_iterations(self) -> int:
        return self.order.updates_per_epoch * self.config.epochs

    def updates(self, iteration: int) -> Iterable[list[RankedForest]]:
        self.look(iteration)
        chosen = [self.trees[i] for i in self.order.at(iteration)]
        max_tokens = self.config.microbatch_tokens
        yield list(microbatches(chosen, max_tokens=max_tokens, device=self.device))

    def loss(self, batch: RankedForest) -> LossSums:
        per_token, _ = target_logps(self.model, batch.forest)
        part = self.judge(self.answers(answer_logps(per_token, batch), batch.trees), batch.trees)
        part.tokens = batch.forest.host.num_tokens
        return part

    def answers(self, logps: Tensor, trees: Sequence[RankedTree]) -> Answers:
        """Log-probabilities [A] with what is known of the answers of `trees`."""
        lengths = torch.from_numpy(np.concatenate([tree.lengths for tree in trees]))
        known = torch.zeros(len(lengths))
        if self.has_reference:
            reference = np.concatenate([self.reference[id(tree)] for tree in trees])
            known = torch.from_numpy(reference.astype(np.float32))
        return Answers(logps, known.to(logps.device), lengths.to(logps.device))


def answer_logps(per_token: Tensor, batch: RankedForest) -> Tensor:
    """Log-probability of each answer [A], from those of the trained tokens [N]."""
    sums = segment_sums(per_token, batch.forest)
    return sums[torch.from_numpy(batch.forest.host.answers).to(sums.device)]
