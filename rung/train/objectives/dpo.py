"""DPO: the reward model's sibling without a reward model; the policy itself is the score.

Rafailov et al. 2023, equation 7: with h = beta (log pi(y) - log pi_ref(y)) the implicit reward of
an answer, the loss of a pair is -log sigmoid(h_chosen - h_rejected). Its parts can be exchanged:

- per_token: log-ratios per token, "dpo_norm" (Lambert et al. 2024, Tulu 3, equation 6); beta 5.
- label_smoothing e: conservative DPO (Mitchell 2023), (1 - e) of the loss and e of that of the
  swapped pair; with `robust` the unbiased estimate of Chowdhury et al. 2024 instead.
- loss hinge: SLiC's (Zhao et al. 2023). nll_weight: an anchor (Pang et al. 2024, equation 2).
- A margin in the data is taken off the lead (Amini et al. 2024, DPO with an offset, section 4).

That the chosen log-probability may fall, too, is no fault: the loss asks for a growing gap only.
Where it falls far, raise nll_weight or beta.
"""

from typing import Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from rung.store.context import Notes, StageContext
from rung.train.margins import hinge, sigmoid, smoothed, unbiased
from rung.train.pairs import PairConfig, PairObjective
from rung.train.preference import Answers, log_ratios
from rung.train.preference_stage import run_preference

LOSSES = {"sigmoid": sigmoid, "hinge": hinge}


class Config(PairConfig):
    """Options of `rung dpo`."""

    beta: float = Field(0.1, gt=0, description="strength of the tie to the reference")
    per_token: bool = Field(False, description="log-ratios per token; wants a beta of 2 to 10")
    loss: Literal["sigmoid", "hinge"] = Field("sigmoid", description="what a lead is worth")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="share of labels taken as wrong")
    robust: bool = Field(False, description="correct for that share without bias, not by smoothing")

    @model_validator(mode="after")
    def _has_a_share(self) -> Self:
        if self.robust and not self.label_smoothing:
            raise ValueError("robust corrects for wrong labels: say how many with label_smoothing")
        return self


class DPOObjective(PairObjective):
    """Pairs in, a policy out."""

    name = "dpo"
    config: Config

    def rewards(self, answers: Answers) -> Tensor:
        return self.config.beta * log_ratios(answers, per_token=self.config.per_token)

    def losses(self, chosen: Tensor, rejected: Tensor, lead: Tensor) -> Tensor:
        mend = unbiased if self.config.robust else smoothed
        loss = LOSSES[self.config.loss]
        return mend(loss, chosen - rejected - lead, self.config.label_smoothing)


def run(context: StageContext, config: Config) -> Notes:
    """Train the policy on pairs; the model it starts from is its reference."""
    return run_preference(context, config, DPOObjective)
