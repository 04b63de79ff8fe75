"""What PPO and GRPO share: rollouts, epochs over them, held-out utility, health, stop rule."""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from rung.model.adapters import is_adapted, trained_part
from rung.model.precision import pick_device, pick_dtype
from rung.model.types import PreTrainedModel
from rung.train.advantage import answer_sums
from rung.train.health import StopRule, correlation, examine
from rung.train.kl import k1
from rung.train.loop import EarlyStop, Objective, Sample
from rung.train.optim import TrainConfig
from rung.train.ranked import EpochOrder
from rung.train.rollout import Prompt, Rollout, RolloutPlan, Scorer, make_rollout
from rung.train.state import set_weights

B = TypeVar("B")
M = TypeVar("M", bound=nn.Module)
Evaluate = Callable[[PreTrainedModel], dict[str, float]]


class OnPolicyConfig(TrainConfig):
    """Options that `rung ppo` and `rung grpo` share. Sampling is at temperature 1 always: any
    other distribution than the trained one makes the KL estimate wrong, even negative."""

    iterations: int = Field(20, ge=1, description="rollouts")
    prompts_per_iteration: int = Field(32, ge=1, description="prompts in one rollout")
    answers_per_prompt: int = Field(4, ge=1, description="answers sampled per prompt")
    max_new_tokens: int = Field(64, ge=1, description="longest answer, tokens")
    epochs: int = Field(2, ge=1, description="passes over a rollout")
    minibatches: int = Field(2, ge=1, description="optimizer updates per pass")
    missing_stop_penalty: float = Field(
        1.0, ge=0, description="taken from the reward of an answer cut at the limit"
    )
    epoch_kl: float = Field(
        0.05, gt=0, description="KL (nats per token) to the rollout's policy that ends its epochs"
    )
    kl_limit: float = Field(40.0, gt=0, description="KL to the reference, nats per answer")
    kl_patience: int = Field(3, ge=1, description="rollouts above kl_limit until training stops")
    eval_prompts: int = Field(64, ge=0, description="held-out prompts of known truth to grade on")
    eval_every: int = Field(5, ge=1, description="rollouts between two gradings")
    optimizer: Literal["muon", "adamw"] = Field("adamw", description="fine-tuning keeps to AdamW")
    lr: float = Field(1e-4, gt=0, description="peak AdamW learning rate")
    adapter_lr: ClassVar[float] = 1e-4
    takes_dropout: ClassVar[bool] = False
    decay: float = Field(1.0, ge=0, le=1, description="share of iterations that decay at the end")
    checkpoints: int = Field(6, ge=0, description="checkpoints in the course of the stage")


class OnPolicy(Objective[B]):
    """Samples with the policy, judges with the scorer, learns from the rollout, forgets it.

    `prepare` turns a rollout into one batch per microbatch; a child also gives `loss`, and reports
    the KL to the rollout's policy to `saw_kl`. The weights of the last rollout whose KL to the
    reference was within the limit are kept, checkpointed, and put back when the stop rule fires.
    Of a policy with an adapter the reference is the policy with the adapter off, and only the
    adapter's weights are kept: no second model is in memory.
    """

    config: OnPolicyConfig

    def __init__(
        self,
        policy: PreTrainedModel,
        scorer: Scorer,
        prompts: Sequence[Prompt],
        config: Any,
        *,
        stop_ids: tuple[int, ...],
        evaluate: Evaluate | None = None,
        samples: Callable[[], list[Sample]] = list,
    ):
        """samples: takes what `evaluate` let the policy write since it was last asked."""
        self.policy, self.scorer, self.prompts, self.config = policy, scorer, prompts, config
        self.part = trained_part(policy)
        self.reference = policy if is_adapted(policy) else _frozen_copy(policy)
        self.good = _frozen_copy(self.part)
        self.evaluate, self._samples = evaluate, samples
        device = pick_device(config.device)
        self.plan = RolloutPlan(
            num_answers=config.answers_per_prompt,
            max_new_tokens=config.max_new_tokens,
            stop_ids=stop_ids,
            minibatches=config.minibatches,
            microbatch_tokens=config.microbatch_tokens,
            dtype=pick_dtype(config.precision, device),
            device=device,
        )
        self.order = EpochOrder(len(prompts), config.prompts_per_iteration, config.seed)
        self.stop_rule = StopRule(config.kl_limit, config.kl_patience)
        self.first: dict[str, float] = {}  # readings of the first rollout, to tell drift
        self.readings: dict[str, float] = {}
        self._epoch_kl = [0.0, 0.0]

    def prepare(self, rollout: Rollout) -> list[B]:
        """One batch per microbatch of the rollout; adds its figures to `self.readings`."""
        raise NotImplementedError

    def trained(self) -> dict[str, nn.Module]:
        """What learns."""
        return {"policy": self.part}

    def modules(self) -> nn.Module:
        return nn.ModuleDict({**self.trained(), "good": self.good})

    def num_iterations(self) -> int:
        return self.config.iterations

    def updates(self, iteration: int) -> Iterable[list[B]]:
        config = self.config
        chosen = [self.prompts[i] for i in self.order.at(iteration)]
        seed = int(np.random.SeedSequence([config.seed, iteration]).generate_state(1)[0])
        due = iteration % config.eval_every == 0
        graded = self.evaluate(self.policy) if self.evaluate and due else {}
        rollout = make_rollout(
            self.policy, self.reference, self.scorer, chosen, plan=self.plan, seed=seed
        )
        self.readings = {**read_rollout(rollout), **graded}
        if self.stop_rule.healthy(self.readings["objective/kl"]):
            set_weights(self.good, self.part.state_dict())
        batches = self.prepare(rollout)
        for epoch in range(config.epochs):
            order = np.random.default_rng([seed, epoch]).permutation(len(rollout.updates))
            # The first epoch keeps its order, so that its first ratio is checkable: it is 1.
            for index in range(len(order)) if epoch == 0 else order:
                self._epoch_kl = [0.0, 0.0]
                yield [batches[i] for i in rollout.updates[index]]
                total, count = self._epoch_kl
                if count and not total / count <= config.epoch_kl:
                    self.readings["epochs_cut"] = 1.0
                    return

    def saw_kl(self, total: float, count: float) -> None:
        """Told by `loss`: the KL of the policy to the rollout's policy, summed over tokens."""
        self._epoch_kl[0] += total
        self._epoch_kl[1] += count

    def after_iteration(self, iteration: int, metrics: dict[str, float]) -> list[str]:
        metrics.update(self.readings)
        if not self.first:
            self.first = {
                "length": metrics["completions/mean_length"],
                "entropy": metrics["objective/entropy"],
            }
        metrics["health/length_ratio"] = metrics["completions/mean_length"] / self.first["length"]
        if self.first["entropy"] > 0:
            metrics["health/entropy_ratio"] = metrics["objective/entropy"] / self.first["entropy"]
        findings = examine(metrics, iteration)
        metrics["health/findings"] = float(len(findings))
        lines = [f"health at rollout {iteration}: {finding.sentence()}" for finding in findings]
        if "eval/utility" in metrics:
            lines.append(
                f"rollout {iteration}: noise-free utility {metrics['eval/utility']:.3f}, "
                f"proxy reward {metrics['eval/scores']:.3f}, KL {metrics['objective/kl']:.2f}"
            )
        if self.stop_rule.update(metrics["objective/kl"]):
            set_weights(self.part, self.good.state_dict())
            raise EarlyStop(
                f"KL to the reference {metrics['objective/kl']:.1f} nats per answer was above "
                f"{self.config.kl_limit:g} in {self.config.kl_patience} rollouts; went back to "
                "the last weights within it. Raise the KL coefficient or lower lr"
            )
        return lines

    def take_samples(self) -> list[Sample]:
        return self._samples()

    def state(self) -> dict[str, Any]:
        return {"over": self.stop_rule.over, "first": self.first}

    def load_state(self, state: dict[str, Any]) -> None:
        self.stop_rule.over = int(state["over"])
        self.first = dict(state["first"])


def read_rollout(rollout: Rollout) -> dict[str, float]:
    """Figures of a rollout, by the names that TRL made usual. KL in nats per answer."""
    kl = k1(torch.cat(rollout.logps), torch.cat(rollout.reference)).double().cpu().numpy()
    return {
        "objective/kl": float(answer_sums(kl, rollout.lengths).mean()),
        "objective/entropy": float(rollout.entropy.mean()),
        "objective/scores": float(rollout.scores.mean()),
        "val/num_eos_tokens": float(rollout.stopped.sum()),
        "completions/mean_length": float(rollout.lengths.mean()),
        "completions/clipped_ratio": float(1 - rollout.stopped.mean()),
        "health/stop_rate": float(rollout.stopped.mean()),
        "health/reward_length_correlation": correlation(
            rollout.scores, rollout.lengths.astype(float)
        ),
    }


def clipped_surrogate(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, *, low: float, high: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(losses [N], ratios [N], 1 where the clip is active [N]).

    -min(r A, clip(r, 1 - low, 1 + high) A): Schulman et al. 2017, equation 7; two clip ranges
    after Yu et al. 2025 (DAPO), equation 10.
    """
    ratio = torch.exp(logp - old_logp)
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - low, 1 + high)
    return torch.maximum(plain, clipped), ratio, (clipped > plain).float()


def _frozen_copy(model: M) -> M:
    twin = copy.deepcopy(model).eval()
    return twin.requires_grad_(False)
