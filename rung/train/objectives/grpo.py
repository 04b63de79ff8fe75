"""GRPO: PPO with the group mean as baseline instead of a critic, the group in one forest.

DeepSeekMath (Shao et al. 2024), equations 3 and 4: the advantage of an answer is its reward less
the mean reward of the answers to the same prompt, the same for all of its tokens; the KL to the
reference is a term of the loss (estimator k3) instead of a part of the reward. Sums are divided by
the tokens of the whole update (DAPO, Yu et al. 2025, equation 12), so long answers weigh as much
per token as short ones; division by the group's standard deviation is off by default ("Dr. GRPO",
Liu et al. 2025). Groups whose answers all have the same reward teach nothing and are counted.
"""

from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from rung.model.attention import TorchForest
from rung.model.forward import target_logps
from rung.store.context import Notes, StageContext
from rung.train.advantage import group_advantages, spread
from rung.train.alignment import run_alignment
from rung.train.kl import k3
from rung.train.loop import LossSums
from rung.train.onpolicy import OnPolicy, OnPolicyConfig, clipped_surrogate
from rung.train.rollout import Prompt, Rollout


class Config(OnPolicyConfig):
    """Options of `rung grpo`."""

    answers_per_prompt: int = Field(8, ge=2, description="answers in a group")
    prompts_per_iteration: int = Field(16, ge=1, description="groups in one rollout")
    beta: float = Field(0.02, ge=0, description="weight of the KL to the reference, per token")
    clip_low: float = Field(0.2, gt=0, lt=1, description="how far a ratio may fall below 1")
    clip_high: float = Field(0.28, gt=0, description="how far a ratio may rise above 1")
    scale_by_std: bool = Field(False, description="divide advantages by the group's std")


@dataclass(frozen=True, eq=False)
class Batch:
    """A microbatch of whole groups; tensors float32 [N]."""

    forest: TorchForest
    logps: Tensor
    reference: Tensor
    advantages: Tensor


class GRPOObjective(OnPolicy[Batch]):
    """One iteration: a rollout of groups, then `epochs` passes over it."""

    name = "grpo"
    config: Config

    def prepare(self, rollout: Rollout) -> list[Batch]:
        config = self.config
        rewards = rollout.scores - config.missing_stop_penalty * ~rollout.stopped
        advantages, num_flat = group_advantages(
            rewards, config.answers_per_prompt, scale_by_std=config.scale_by_std
        )
        groups = rewards.reshape(-1, config.answers_per_prompt)
        self.readings.update(
            {
                "reward": float(rewards.mean()),
                "reward_std": float(groups.std(axis=1).mean()),
                "frac_reward_zero_std": num_flat / len(groups),
                "groups_without_signal": float(num_flat),
            }
        )
        columns = zip(
            rollout.forests,
            rollout.logps,
            rollout.reference,
            rollout.split(spread(advantages, rollout.lengths)),
            strict=True,
        )
        return [Batch(*column) for column in columns]

    def loss(self, batch: Batch) -> LossSums:
        config, count = self.config, len(batch.logps)
        logps, entropy = target_logps(self.policy, batch.forest)
        losses, ratio, clipped = clipped_surrogate(
            logps, batch.logps, batch.advantages, low=config.clip_low, high=config.clip_high
        )
        kl = k3(logps, batch.reference)
        difference = (logps - batch.logps).detach()
        policy_kl = float((torch.expm1(difference) - difference).sum())
        self.saw_kl(policy_kl, count)

        def total(sums: Tensor) -> tuple[float, float]:
            return float(sums.detach().sum()), count

        return LossSums(
            loss=(losses + config.beta * kl).sum(),
            count=count,
            tokens=batch.forest.host.num_tokens,
            metrics={
                "kl": total(kl),
                "entropy": total(entropy),
                "clip_ratio/region_mean": total(clipped),
                "policy/clipfrac_avg": total(clipped),
                "policy/approxkl_avg": (policy_kl, count),
                "val/ratio": total(ratio),
            },
        )


def run(context: StageContext, config: Config) -> Notes:
    """Train the policy against the reward model on the dataset's prompts."""

    def build(policy: Any, scorer: Any, prompts: list[Prompt], **options: Any) -> GRPOObjective:
        return GRPOObjective(policy, scorer, prompts, config, **options)

    return run_alignment(context, config, build)
