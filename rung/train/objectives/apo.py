"""APO-zero: DPO with an anchor at the reference; chosen answers must rise, rejected ones fall.

D'Oosterlinck et al. 2024, equation 7: (1 - sigmoid(h_chosen)) + sigmoid(h_rejected) with
h = beta (log pi(y) - log pi_ref(y)). DPO wants a gap only, and the chosen answer may fall with the
rejected one. Right where the chosen answers are better than what the model says by itself. A margin
in the data has no place in it.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from rung.store.context import Notes, StageContext
from rung.train.pairs import PairConfig, PairObjective
from rung.train.preference import Answers, log_ratios
from rung.train.preference_stage import run_preference


class Config(PairConfig):
    """Options of `rung apo`."""

    beta: float = Field(0.1, gt=0, description="strength of the tie to the reference")


class APOObjective(PairObjective):
    """Pairs in, a policy out."""

    name = "apo"
    config: Config
    uses_margins: ClassVar[bool] = False

    def rewards(self, answers: Answers) -> Tensor:
        return self.config.beta * log_ratios(answers)

    def losses(self, chosen: Tensor, rejected: Tensor, lead: Tensor) -> Tensor:
        return torch.sigmoid(-chosen) + torch.sigmoid(rejected)


def run(context: StageContext, config: Config) -> Notes:
    """Train the policy on pairs; the model it starts from is its reference."""
    return run_preference(context, config, APOObjective)
