"""ORPO: SFT on the chosen answers with a term that makes them more likely than the rejected ones.

Hong et al. 2024, equations 6 and 7: NLL of the chosen answer per token, plus
beta (lambda in the paper) times -log sigmoid(log odds(chosen) - log odds(rejected)), where
odds = p / (1 - p) and p is the probability of an answer per token (its geometric mean). One stage
takes the place of SFT and DPO, so it starts from a base model and wants a learning rate of SFT's
kind. No reference is asked. The implicit reward that is logged is the log odds.

The NLL is over the answers only; TRL's is over the prompts, too.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from rung.store.context import Notes, StageContext
from rung.train.margins import sigmoid
from rung.train.pairs import PairConfig, PairObjective
from rung.train.preference import Answers, mean_logps
from rung.train.preference_stage import run_preference

NEARLY_CERTAIN = -1e-6  # log p from which on the odds are not told from infinite ones in float32


class Config(PairConfig):
    """Options of `rung orpo`."""

    beta: float = Field(0.1, gt=0, description="weight of the odds ratio (lambda in the paper)")
    nll_weight: float = Field(1.0, ge=0, description="weight of the chosen answers' likelihood")
    lr: float = Field(3e-4, gt=0, description="peak AdamW learning rate")
    adapter_lr: ClassVar[float] = 5e-4


def log_odds(logps: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p <= 0, without cancellation at either end."""
    logps = logps.clamp(max=NEARLY_CERTAIN)
    return logps - torch.log(-torch.expm1(logps))


class ORPOObjective(PairObjective):
    """Pairs in, a policy out; no reference is ever asked."""

    name = "orpo"
    config: Config
    has_reference: ClassVar[bool] = False

    def rewards(self, answers: Answers) -> Tensor:
        return log_odds(mean_logps(answers))

    def losses(self, chosen: Tensor, rejected: Tensor, lead: Tensor) -> Tensor:
        return self.config.beta * sigmoid(chosen - rejected - lead)


def run(context: StageContext, config: Config) -> Notes:
    """Train the policy on pairs; a base model will do."""
    return run_preference(context, config, ORPOObjective)
