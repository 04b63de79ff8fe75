"""PPO: policy gradient on sampled answers, with a clipped ratio, a critic and a KL penalty.

Schulman et al. 2017, equations 7 and 9, as used for language models by Ziegler et al. 2019 and
Stiennon et al. 2020. The reward of token t is -beta (log pi_old - log pi_ref), and at the last
token the reward model's score is added, less a penalty where the answer never stopped. beta
follows the KL (kl.py). Advantages are GAE's, whitened once over the whole rollout.

The critic is a two-layer head on the *frozen reward model's* hidden states, which scoring the
rollout has computed already. A critic of its own would double the cost of every update, and one
that shares the policy's trunk pulls at the policy; this one costs nothing and cannot. Its limit:
it knows of a half-written answer what the reward model's trunk knows. Explained variance is logged.
"""

from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from rung.model.attention import TorchForest
from rung.model.forward import target_logps
from rung.model.heads import ValueHead
from rung.model.types import PreTrainedModel
from rung.store.context import Notes, StageContext
from rung.train.advantage import (
    answer_sums,
    at_last_token,
    explained_variance,
    gae,
    group_advantages,
    whiten,
)
from rung.train.alignment import run_alignment
from rung.train.kl import AdaptiveKL, k1
from rung.train.loop import LossSums
from rung.train.onpolicy import OnPolicy, OnPolicyConfig, clipped_surrogate
from rung.train.rollout import Prompt, Rollout, Scorer


class Config(OnPolicyConfig):
    """Options of `rung ppo`."""

    kl_coefficient: float = Field(0.05, ge=0, description="beta at the start")
    kl_target: float = Field(8.0, gt=0, description="KL that beta steers to, nats per answer")
    kl_gain: float = Field(0.5, ge=0, description="strength of the steering, 0 keeps beta")
    gamma: float = Field(1.0, gt=0, le=1, description="discount per token")
    lam: float = Field(0.95, ge=0, le=1, description="GAE's lambda")
    clip_range: float = Field(0.2, gt=0, description="how far a ratio may leave 1")
    group_baseline: bool = Field(
        False,
        description="take the mean score of a prompt's answers off their scores: the critic is "
        "left with what differs within a prompt",
    )
    value_clip: float = Field(0.5, gt=0, description="how far a value may move in a rollout")
    # Adam takes no notice of it, but clipping does: a large one would scale the policy's step down.
    value_weight: float = Field(0.05, ge=0, description="weight of the value loss")


@dataclass(frozen=True, eq=False)
class Batch:
    """A microbatch; all tensors float32 [N], features [N, W]. Values are those at the rollout."""

    forest: TorchForest
    logps: Tensor
    advantages: Tensor
    returns: Tensor
    values: Tensor
    features: Tensor


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float) -> Tensor:
    """max((V - R)^2, (clip(V, V_old +- clip) - R)^2) / 2 per token [N] (the PPO code's form)."""
    near = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)


class PPOObjective(OnPolicy[Batch]):
    """One iteration: a rollout, then `epochs` passes over it."""

    name = "ppo"
    config: Config

    def __init__(
        self,
        policy: PreTrainedModel,
        scorer: Scorer,
        prompts: list[Prompt],
        config: Config,
        *,
        value_width: int,
        **options: Any,
    ):
        super().__init__(policy, scorer, prompts, config, **options)
        self.value = ValueHead(value_width, seed=config.seed).to(self.plan.device)
        self.kl = AdaptiveKL(config.kl_coefficient, config.kl_target, config.kl_gain)

    def trained(self) -> dict[str, nn.Module]:
        return {"policy": self.part, "value": self.value}

    def prepare(self, rollout: Rollout) -> list[Batch]:
        config, lengths = self.config, rollout.lengths
        penalty = -self.kl.coefficient * rollout.flat(
            [k1(a, b) for a, b in zip(rollout.logps, rollout.reference, strict=True)]
        )
        scores = rollout.scores - config.missing_stop_penalty * ~rollout.stopped
        if config.group_baseline:
            scores, _ = group_advantages(scores, config.answers_per_prompt, scale_by_std=False)
        rewards = penalty + at_last_token(scores, lengths)
        with torch.no_grad():
            old_values = [self.value(features) for features in rollout.features]
        values = rollout.flat(old_values)
        advantages, returns = gae(rewards, values, lengths, gamma=config.gamma, lam=config.lam)
        self.readings.update(
            {
                "objective/non_score_reward": float(answer_sums(penalty, lengths).mean()),
                "objective/rlhf_reward": float(answer_sums(rewards, lengths).mean()),
                "objective/kl_coefficient": self.kl.coefficient,
                "val/explained_variance": explained_variance(values, returns),
                "val/mean": float(values.mean()),
            }
        )
        columns = zip(
            rollout.forests,
            rollout.logps,
            rollout.split(whiten(advantages)),
            rollout.split(returns),
            old_values,
            rollout.features,
            strict=True,
        )
        return [Batch(*column) for column in columns]

    def loss(self, batch: Batch) -> LossSums:
        config, count = self.config, len(batch.logps)
        logps, _ = target_logps(self.policy, batch.forest)
        losses, ratio, clipped = clipped_surrogate(
            logps, batch.logps, batch.advantages, low=config.clip_range, high=config.clip_range
        )
        values = self.value(batch.features)
        errors = value_loss(values, batch.values, batch.returns, clip=config.value_clip)
        moved = (values.detach() - batch.values).abs() > config.value_clip
        difference = (logps - batch.logps).detach()
        policy_kl = float((torch.expm1(difference) - difference).sum())
        self.saw_kl(policy_kl, count)

        def total(sums: Tensor) -> tuple[float, float]:
            return float(sums.detach().sum()), count

        return LossSums(
            loss=(losses + config.value_weight * errors).sum(),
            count=count,
            tokens=batch.forest.host.num_tokens,
            metrics={
                "loss/policy_avg": total(losses),
                "loss/value_avg": total(errors),
                "policy/approxkl_avg": (policy_kl, count),
                "policy/clipfrac_avg": total(clipped),
                "val/clipfrac_avg": total(moved.float()),
                "val/ratio": total(ratio),
            },
        )

    def after_iteration(self, iteration: int, metrics: dict[str, float]) -> list[str]:
        self.kl.update(self.readings["objective/kl"])
        return super().after_iteration(iteration, metrics)

    def state(self) -> dict[str, Any]:
        return {**super().state(), "kl_coefficient": self.kl.coefficient}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.kl.coefficient = float(state["kl_coefficient"])


def run(context: StageContext, config: Config) -> Notes:
    """Train the policy against the reward model on the dataset's prompts."""

    def build(policy: Any, scorer: Any, prompts: list[Prompt], **options: Any) -> PPOObjective:
        width = int(scorer.backbone.config.hidden_size)
        return PPOObjective(policy, scorer, prompts, config, value_width=width, **options)

    return run_alignment(context, config, build)
