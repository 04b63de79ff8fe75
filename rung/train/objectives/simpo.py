"""SimPO: DPO without a reference; the mean log-probability is the reward and must lead by gamma.

Meng et al. 2024, equation 6: -log sigmoid(r_chosen - r_rejected - gamma) with
r = beta / |y| log pi(y). The reward is what decoding maximises, and length buys nothing. Nothing
ties the policy to where it started, so the learning rate and nll_weight are what keeps it sane.
"""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from rung.store.context import Notes, StageContext
from rung.train.margins import sigmoid, smoothed
from rung.train.pairs import PairConfig, PairObjective
from rung.train.preference import Answers, mean_logps
from rung.train.preference_stage import run_preference


class Config(PairConfig):
    """Options of `rung simpo`."""

    beta: float = Field(2.0, gt=0, description="scale of the reward, per nat and token")
    gamma: float = Field(0.5, ge=0, description="lead that a chosen answer must have, in reward")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="share of labels taken as wrong")


class SimPOObjective(PairObjective):
    """Pairs in, a policy out; no reference is ever asked."""

    name = "simpo"
    config: Config
    has_reference: ClassVar[bool] = False

    def rewards(self, answers: Answers) -> Tensor:
        return self.config.beta * mean_logps(answers)

    def losses(self, chosen: Tensor, rejected: Tensor, lead: Tensor) -> Tensor:
        margins = chosen - rejected - lead - self.config.gamma
        return smoothed(sigmoid, margins, self.config.label_smoothing)


def run(context: StageContext, config: Config) -> Notes:
    """Train the policy on pairs."""
    return run_preference(context, config, SimPOObjective)
