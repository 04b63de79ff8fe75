"""Objectives on single answers: each is desirable or undesirable, whoever else was judged.

The zero point of such a judgement is how far the policy has moved at all: KL(policy, reference),
estimated from answers under prompts that are not theirs, as the mean of their log-ratios, at least
0 and without a gradient (Ethayarajh et al. 2024, section 4.1). The strangers of an update are its
own prompts with the answers of the prompt before, so the KL is that of the whole update and
microbatches change nothing. Which they are follows from the seed, so the reference reads them all
before training.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from rung.errors import DataError
from rung.feedback.labels import Rule, label_answers
from rung.feedback.schema import Ranking
from rung.model.load import context_length
from rung.model.types import PreTrainedModel
from rung.store.context import StageContext
from rung.tokens.forest import Tree
from rung.train.loop import LossSums
from rung.train.preference import Answers, PreferenceConfig, PreferenceObjective, mean_logps
from rung.train.ranked import EpochOrder, RankedTree
from rung.train.reference import answer_logps_of
from rung.train.scorecard import ranked_pairs


class LabelledConfig(PreferenceConfig):
    """What all objectives on single answers have in common."""

    rankings_per_update: int = Field(16, ge=2, description="prompts in one optimizer update")
    desirable_weight: float = Field(1.0, gt=0, description="weight of desirable answers")
    undesirable_weight: float = Field(1.0, gt=0, description="weight of undesirable answers")
    labels_from: Rule = Field(
        "best_worst", description="what in a ranking says which answers are desirable"
    )
    rating_threshold: float | None = Field(
        None, description="a rating from which on an answer is desirable; None: the middle of all"
    )


def strangers(
    trees: Sequence[RankedTree], config: LabelledConfig, *, limit: int
) -> list[list[RankedTree]]:
    """By iteration: each prompt of the update with the answers of the prompt before it, cut at
    `limit` tokens, the model's context."""
    order = EpochOrder(len(trees), config.rankings_per_update, config.seed)
    updates = range(order.updates_per_epoch * config.epochs)
    return [
        [
            RankedTree(_answered(tree.tree, other.tree, limit), other.ranks, other.record)
            for tree, other in zip(chosen, [chosen[-1], *chosen[:-1]], strict=True)
            if len(chosen) > 1  # one prompt alone has no stranger
        ]
        for chosen in ([trees[i] for i in order.at(update)] for update in updates)
    ]


def _answered(prompt: Tree, other: Tree, limit: int) -> Tree:
    """The root of `prompt` with the answers of `other`."""
    room = limit - len(prompt[0].ids)
    cut = [replace(s, ids=s.ids[:room], weights=s.weights[:room]) for s in other[1:]]
    return (prompt[0], *cut)


def is_desirable(tree: RankedTree) -> np.ndarray:
    return np.array([label is True for label in tree.record.labels or ()])


class LabelledObjective(PreferenceObjective):
    """Labelled answers in, a policy out. Subclasses give `rewards` and `losses`.

    kl: nats per answer, of the update under way.
    """

    config: LabelledConfig
    unusable: ClassVar[str] = "without a desirable or undesirable answer"

    def __init__(
        self,
        model: PreTrainedModel,
        trees: Sequence[RankedTree],
        reference: Sequence[np.ndarray],
        config: LabelledConfig,
    ):
        super().__init__(model, trees, reference[: len(trees)], config)
        self.strangers = strangers(trees, config, limit=context_length(model))
        known = iter(reference[len(trees) :])
        self.strangers_reference = [[next(known) for _ in update] for update in self.strangers]
        self.kl = 0.0

    @classmethod
    def usable(cls, records: Sequence[Ranking], config: Any) -> list[Ranking]:
        found = label_answers(
            records, rule=config.labels_from, rating_threshold=config.rating_threshold
        )
        if not found:
            raise DataError(
                f"none of {len(records)} judgements says which answers are desirable: give labels, "
                f"or choose another labels_from (now {config.labels_from})"
            )
        return found

    @classmethod
    def reference_trees(
        cls, trees: Sequence[RankedTree], config: Any, *, limit: int
    ) -> list[RankedTree]:
        updates = strangers(trees, config, limit=limit)
        return [*trees, *(tree for update in updates for tree in update)]

    def start(self, context: StageContext) -> None:
        labels = np.concatenate([is_desirable(tree) for tree in self.trees])
        for line in balance(int(labels.sum()), int((~labels).sum()), self.config):
            context.progress.say(line)

    def look(self, iteration: int) -> None:
        trees, config = self.strangers[iteration], self.config
        self.kl = 0.0
        if trees:
            logps = answer_logps_of(
                self.model, trees, config=config, microbatch_tokens=config.microbatch_tokens
            )
            reference = np.concatenate(self.strangers_reference[iteration])
            self.kl = max(0.0, float((np.concatenate(logps) - reference).mean()))

    def losses(self, rewards: Tensor, desirable: Tensor) -> Tensor:
        """Losses [A] from rewards [A]; desirable: True or False [A]."""
        raise NotImplementedError

    def pairs(self, tree: RankedTree) -> np.ndarray:
        return ranked_pairs(~is_desirable(tree))

    def judge(self, answers: Answers, trees: Sequence[RankedTree]) -> LossSums:
        config, device = self.config, answers.logps.device
        good = torch.from_numpy(np.concatenate([is_desirable(t) for t in trees])).to(device)
        counts = [np.full(len(t.ranks), t.record.weight, np.float32) for t in trees]
        weights = torch.from_numpy(np.concatenate(counts)).to(device)
        rewards = self.rewards(answers)
        losses = self.losses(rewards, good)
        losses = losses * torch.where(good, config.desirable_weight, config.undesirable_weight)
        if config.nll_weight:
            losses = losses - config.nll_weight * torch.where(good, mean_logps(answers), 0.0)

        def total(values: Tensor, which: Tensor) -> tuple[float, float]:
            return float(values.detach()[which].sum()), int(which.sum())

        metrics = {
            "rewards/chosen": total(rewards, good),
            "rewards/rejected": total(rewards, ~good),
            "logps/chosen": total(answers.logps, good),
            "logps/rejected": total(answers.logps, ~good),
            "kl": (self.kl * len(good), len(good)),
            "rewards/accuracies": self._accuracy(rewards.detach().cpu().numpy(), trees),
        }
        return LossSums((losses * weights).sum(), float(weights.sum()), 0, metrics)

    def _accuracy(self, rewards: np.ndarray, trees: Sequence[RankedTree]) -> tuple[float, float]:
        """Of pairs of the same prompt; thumbs on single answers make none."""
        cuts = np.cumsum([len(tree.ranks) for tree in trees])[:-1]
        hits = [
            own[pair[:, 0]] > own[pair[:, 1]]
            for own, pair in zip(np.split(rewards, cuts), map(self.pairs, trees), strict=True)
        ]
        return float(sum(part.sum() for part in hits)), sum(map(len, hits))

    def after_iteration(self, iteration: int, metrics: dict[str, float]) -> list[str]:
        if {"rewards/chosen", "rewards/rejected"} <= metrics.keys():
            metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
        return []

    def extra_forwards(self) -> float:
        """Besides the answers, the reference and the policy read strangers of every epoch."""
        return super().extra_forwards() + 2


def balance(good: int, bad: int, config: LabelledConfig) -> list[str]:
    """How many of each there are, and what to set where their weights are out of 1:1 to 4:3."""
    lines = [f"{good} desirable and {bad} undesirable answers to train on"]
    ratio = config.desirable_weight * good / (config.undesirable_weight * bad) if bad else 0.0
    if not (good and bad):
        lines.append("all of one kind: the policy only moves away from where it was; add others")
    elif not 1 <= ratio <= 4 / 3:
        need = config.undesirable_weight * bad / good
        lines.append(
            f"weighted they stand {ratio:.2f} to 1, outside of 1 to 4/3 (Ethayarajh et al. 2024, "
            f"section 4): set desirable_weight to {need:.3g} to {4 / 3 * need:.3g}"
        )
    return lines
