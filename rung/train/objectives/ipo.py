"""IPO: DPO with a squared loss, so that a pair that is won for certain stops pulling.

Azar et al. 2023, equation 17: (h - 1 / (2 beta))^2 with h the log-ratio of the chosen answer minus
that of the rejected one. DPO's sigmoid never has enough of a pair that always has the same winner,
whatever beta; here the lead has a target. In units of the implicit reward beta log(pi / pi_ref),
in which margins are logged, the target is 1/2: the same loss is ((m - 1/2) / beta)^2.

Log-ratios are per token by default, as the authors confirmed to TRL: the target would else be one
of whole answers, however long.
"""

from pydantic import Field
from torch import Tensor

from rung.store.context import Notes, StageContext
from rung.train.pairs import PairConfig, PairObjective
from rung.train.preference import Answers, log_ratios
from rung.train.preference_stage import run_preference


class Config(PairConfig):
    """Options of `rung ipo`."""

    beta: float = Field(
        0.1, gt=0, description="strength of the tie; 1 / (2 beta) nats are aimed at"
    )
    per_token: bool = Field(True, description="log-ratios per token rather than per answer")


class IPOObjective(PairObjective):
    """Pairs in, a policy out."""

    name = "ipo"
    config: Config

    def rewards(self, answers: Answers) -> Tensor:
        return self.config.beta * log_ratios(answers, per_token=self.config.per_token)

    def losses(self, chosen: Tensor, rejected: Tensor, lead: Tensor) -> Tensor:
        return ((chosen - rejected - lead - 0.5) / self.config.beta) ** 2


def run(context: StageContext, config: Config) -> Notes:
    """Train the policy on pairs; the model it starts from is its reference."""
    return run_preference(context, config, IPOObjective)
