"""KTO: DPO without pairs; each answer alone is desirable or not, beside a common zero point.

Ethayarajh et al. 2024, equation 7: with h = beta (log pi(y) - log pi_ref(y)) the implicit reward
and z = beta KL(pi, pi_ref), the loss is w_D (1 - sigmoid(h - z)) for a desirable answer and
w_U (1 - sigmoid(z - h)) for an undesirable one. A thumb on one answer is enough; rankings serve,
too: `labels_from` says how they are read. How the KL is estimated: rung/train/labelled.py.
"""

import torch
from pydantic import Field
from torch import Tensor

from rung.store.context import Notes, StageContext
from rung.train.labelled import LabelledConfig, LabelledObjective
from rung.train.preference import Answers, log_ratios
from rung.train.preference_stage import run_preference


class Config(LabelledConfig):
    """Options of `rung kto`."""

    beta: float = Field(0.1, gt=0, description="strength of the tie to the reference")


def kto_losses(rewards: Tensor, desirable: Tensor, zero: float) -> Tensor:
    """1 - value of each answer [A]. desirable: True or False [A]. zero: z, in units of reward."""
    return torch.sigmoid(torch.where(desirable, zero - rewards, rewards - zero))


class KTOObjective(LabelledObjective):
    """Labelled answers in, a policy out."""

    name = "kto"
    config: Config

    def rewards(self, answers: Answers) -> Tensor:
        return self.config.beta * log_ratios(answers)

    def losses(self, rewards: Tensor, desirable: Tensor) -> Tensor:
        return kto_losses(rewards, desirable, self.config.beta * self.kl)


def run(context: StageContext, config: Config) -> Notes:
    """Train the policy on labelled answers; the model it starts from is its reference."""
    return run_preference(context, config, KTOObjective)
