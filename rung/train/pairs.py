"""Objectives on pairs: one answer that was preferred to another, in forests of whole rankings."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from rung.errors import DataError
from rung.feedback import rankings
from rung.feedback.schema import Ranking
from rung.train.loop import LossSums
from rung.train.preference import Answers, PreferenceConfig, PreferenceObjective
from rung.train.ranked import RankedTree
from rung.train.scorecard import ranked_pairs

Which = Literal["all", "best_worst"]


class PairConfig(PreferenceConfig):
    """What all objectives on pairs have in common."""

    pairs: Which = Field(
        "all", description="all strictly ordered pairs of a ranking, or its best against its worst"
    )


def make_pairs(tree: RankedTree, which: Which) -> np.ndarray:
    """(chosen, rejected) answer indices [P, 2]; none where all answers tie."""
    pairs = ranked_pairs(tree.ranks)
    if which == "all" or not len(pairs):
        return pairs
    return np.array([[int(np.argmin(tree.ranks)), int(np.argmax(tree.ranks))]])


def chosen_nll(answers: Answers, pairs: Tensor) -> Tensor:
    """Negative log-likelihood per token of the chosen answer of each pair [P]: an anchor that
    keeps it from falling (Pang et al. 2024, equation 2)."""
    return -(answers.logps / answers.lengths).index_select(0, pairs[:, 0])


class PairObjective(PreferenceObjective):
    """Pairs in, a policy out. Subclasses give `rewards` and `losses`."""

    uses_margins: ClassVar[bool] = True
    unusable: ClassVar[str] = "with nothing but ties"

    @classmethod
    def usable(cls, records: Sequence[Ranking], config: Any) -> list[Ranking]:
        found = [record for record in records if rankings.pairs(record)]
        if not found:
            raise DataError(f"none of {len(records)} rankings has two answers of different rank")
        return found

    def losses(self, chosen: Tensor, rejected: Tensor, lead: Tensor) -> Tensor:
        """Losses [P] from rewards [P]. lead [P]: how far apart the data wants them, mostly 0."""
        raise NotImplementedError

    def pairs(self, tree: RankedTree) -> np.ndarray:
        return make_pairs(tree, self.config.pairs)

    def judge(self, answers: Answers, trees: Sequence[RankedTree]) -> LossSums:
        pairs, lead, weights = self._targets(trees, answers.logps.device)
        rewards = self.rewards(answers)
        chosen, rejected = rewards[pairs[:, 0]], rewards[pairs[:, 1]]
        losses = self.losses(chosen, rejected, lead)
        if self.config.nll_weight:
            losses = losses + self.config.nll_weight * chosen_nll(answers, pairs)

        def total(values: Tensor) -> tuple[float, float]:
            return float(values.detach().sum()), len(pairs)

        return LossSums(
            loss=(losses * weights).sum(),
            count=float(weights.sum()),
            tokens=0,
            metrics={
                "rewards/chosen": total(chosen),
                "rewards/rejected": total(rejected),
                "rewards/margins": total(chosen - rejected),
                "rewards/accuracies": total((chosen > rejected).float()),
                "logps/chosen": total(answers.logps[pairs[:, 0]]),
                "logps/rejected": total(answers.logps[pairs[:, 1]]),
            },
        )

    def _targets(
        self, trees: Sequence[RankedTree], device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(pairs [P, 2] as answer indices of the microbatch, leads [P], weights [P])."""
        pairs, leads, weights, first = [], [], [], 0
        for tree in trees:
            found = self.pairs(tree)
            pairs.append(found + first)
            leads.append(np.full(len(found), tree.record.margin or 0.0, np.float32))
            weights.append(np.full(len(found), tree.record.weight, np.float32))
            first += len(tree.ranks)
        whole = (np.concatenate(part) for part in (pairs, leads, weights))
        index, lead, weight = (torch.from_numpy(part).to(device) for part in whole)
        return index, lead, weight
