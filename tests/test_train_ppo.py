"""PPO: losses by hand and in numpy, a bandit with a known optimum, the stop rule, resume."""

import math

import numpy as np
import pytest
import torch
from train_tiny import (
    Quiet,
    artefact,
    context,
    dataset_artefact,
    feedback_artefact,
    model_artefact,
    same_bytes,
    tiny_model,
)

from rung.errors import ArtefactError
from rung.model.heads import ValueHead
from rung.train.advantage import explained_variance, gae, whiten
from rung.train.health import StopRule, correlation, examine
from rung.train.kl import AdaptiveKL, k1, k3
from rung.train.loop import train
from rung.train.objectives import ppo, reward
from rung.train.objectives.ppo import Config, PPOObjective, value_loss
from rung.train.onpolicy import clipped_surrogate
from rung.train.rollout import Prompt

BEST, WORST = 7, 3
VOCAB = 16


class Bandit:
    """A scorer with known arms: an answer's reward is that of its first token."""

    def __init__(self, arms: dict[int, float]) -> None:
        self.arms = arms

    def scores_and_features(self, forest):
        host = forest.host
        first = host.ids[host.seg_start[host.seg_parent >= 0]]
        scores = torch.tensor([self.arms.get(int(token), 0.0) for token in first])
        return scores, torch.ones(len(forest.target), 4)


def bandit_prompts(num: int) -> list[Prompt]:
    return [Prompt(np.array([1, 8 + index], dtype=np.int32), {}) for index in range(num)]


CONFIG = Config(
    iterations=15,
    prompts_per_iteration=4,
    answers_per_prompt=16,
    max_new_tokens=1,
    missing_stop_penalty=0.0,
    kl_coefficient=0.0,
    kl_gain=0.0,
    kl_limit=100.0,
    epoch_kl=10.0,
    lr=1e-2,
    precision="fp32",
)


def build(config=CONFIG, *, scorer=None, policy=None, stop_ids=(), num_prompts=4):
    scorer = scorer or Bandit({BEST: 1.0, WORST: -1.0})
    policy = policy or tiny_model(VOCAB)
    prompts = bandit_prompts(num_prompts)
    return PPOObjective(policy, scorer, prompts, config, value_width=4, stop_ids=stop_ids)


@torch.no_grad()
def share_of_best(policy) -> float:
    """Probability of the best arm, mean over the prompts."""
    policy.config._attn_implementation = "eager"
    shares = [
        torch.softmax(policy(torch.from_numpy(p.ids)[None].long()).logits[0, -1], -1)[BEST]
        for p in bandit_prompts(4)
    ]
    policy.config._attn_implementation = "rung_forest"
    return float(torch.stack(shares).mean())


def test_surrogate_by_hand() -> None:
    # ratios 1.5, 0.5, 1.5, 0.5 with A = 1, 1, -1, -1 and clip 0.2: a rise is capped at 1.2 where
    # it helps, a fall at 0.8 where it helps; what hurts is never capped.
    logp = torch.log(torch.tensor([1.5, 0.5, 1.5, 0.5]))
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    losses, ratio, active = clipped_surrogate(logp, torch.zeros(4), advantages, low=0.2, high=0.2)
    torch.testing.assert_close(losses, torch.tensor([-1.2, -0.5, 1.5, 0.8]))
    torch.testing.assert_close(ratio, torch.tensor([1.5, 0.5, 1.5, 0.5]))
    assert active.tolist() == [1, 0, 0, 1]


def test_value_loss_by_hand() -> None:
    # V 2, old 0, clip 0.5, return 1: (2-1)^2 = 1 against (0.5-1)^2 = 0.25; the larger, halved.
    # V 0.4, within the clip: (0.4-1)^2 / 2 either way. V 2, return 3: (2-3)^2 < (0.5-3)^2.
    value = value_loss(
        torch.tensor([2.0, 0.4, 2.0]), torch.zeros(3), torch.tensor([1.0, 1.0, 3.0]), clip=0.5
    )
    torch.testing.assert_close(value, torch.tensor([0.5, 0.18, 3.125]))


def test_kl_estimates_on_a_known_pair_of_distributions() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.3, 0.2])
    true = float((p * (p / q).log()).sum())
    assert float((p * k1(p.log(), q.log())).sum()) == pytest.approx(true, abs=1e-6)
    assert float((p * k3(p.log(), q.log())).sum()) == pytest.approx(true, abs=1e-6)
    assert (k3(p.log(), q.log()) >= 0).all()


def test_adaptive_coefficient() -> None:
    kl = AdaptiveKL(0.1, target=6.0, gain=0.5)
    kl.update(6.3)  # 5 % over: 0.1 * (1 + 0.5 * 0.05)
    assert kl.coefficient == pytest.approx(0.1025)
    kl.update(600.0)  # far over: the error is clipped at 0.2
    assert kl.coefficient == pytest.approx(0.1025 * 1.1)
    kl.update(0.0)
    assert kl.coefficient == pytest.approx(0.1025 * 1.1 * 0.9)


LONG = CONFIG.model_copy(update={"max_new_tokens": 5, "missing_stop_penalty": 0.5})


@pytest.mark.parametrize("group_baseline", [False, True])
def test_first_ratio_is_exactly_one_and_loss_is_that_of_plain_numpy(group_baseline: bool) -> None:
    changes = {"kl_coefficient": 0.2, "microbatch_tokens": 64, "group_baseline": group_baseline}
    config = LONG.model_copy(update=changes)
    objective = build(config, stop_ids=(2, 5))
    with torch.no_grad():  # a policy that has left its reference, and a critic that says something
        for parameter in objective.policy.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        objective.value.outer.bias.fill_(0.3 / objective.value.gain)
    rollouts = []
    prepare = objective.prepare
    objective.prepare = lambda rollout: rollouts.append(rollout) or prepare(rollout)
    update = next(iter(objective.updates(0)))
    (rollout,) = rollouts
    sums = [objective.loss(batch) for batch in update]

    assert all(part.metrics["val/ratio"][0] == part.count for part in sums)
    assert all(part.metrics["policy/approxkl_avg"][0] == 0.0 for part in sums)
    assert len(rollout.forests) > len(rollout.updates) == 2

    # The whole rollout again in numpy: rewards, GAE, whitening; ratio 1, value error as it is.
    penalty = -0.2 * (rollout.flat(rollout.logps) - rollout.flat(rollout.reference))
    rewards = penalty.copy()
    ends = np.cumsum(rollout.lengths) - 1
    scores = (rollout.scores - 0.5 * (1 - rollout.stopped)).reshape(-1, config.answers_per_prompt)
    if group_baseline:
        scores = scores - scores.mean(1, keepdims=True)
    rewards[ends] += scores.reshape(-1)
    values = np.full(len(rewards), 0.3)
    advantages, returns = gae(rewards, values, rollout.lengths, gamma=1.0, lam=0.95)
    n = sum(int(part.count) for part in sums)
    expected = (-whiten(advantages) + 0.05 * 0.5 * (values - returns) ** 2)[:n].sum()
    assert sum(float(part.loss.detach()) for part in sums) == pytest.approx(expected, rel=1e-4)
    kl = np.add.reduceat(-penalty / 0.2, ends + 1 - rollout.lengths).mean()
    assert objective.readings["objective/kl"] == pytest.approx(kl, rel=1e-5)
    assert 0 < rollout.stopped.mean() < 1


def test_the_critic_learns_at_a_rate_that_suits_a_policy() -> None:
    # Return = a linear function of the features plus as much noise: 0.5 can be explained.
    torch.manual_seed(0)
    head, weight = ValueHead(64), torch.randn(64) / 8
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-4)
    for _ in range(60):
        features = torch.randn(1000, 64)
        returns = features @ weight + torch.randn(1000)
        values = head(features)
        optimizer.zero_grad()
        value_loss(values, values.detach(), returns, clip=0.5).mean().backward()
        optimizer.step()
    assert explained_variance(values.detach().numpy(), returns.numpy()) > 0.2


def test_the_bandit_finds_its_best_arm(tmp_path) -> None:
    objective = build()
    before = share_of_best(objective.policy)
    train(objective, CONFIG, context(tmp_path))
    assert before < 0.3
    assert share_of_best(objective.policy) > 0.95


def test_a_strong_kl_penalty_holds_the_policy(tmp_path) -> None:
    # The optimum is pi ~ pi_ref exp(reward / beta): with beta 1 the best arm gains a factor e
    # over arms of reward 0, so it cannot take over.
    config = CONFIG.model_copy(update={"kl_coefficient": 1.0, "iterations": 30})
    objective = build(config)
    before = share_of_best(objective.policy)
    train(objective, config, context(tmp_path))
    after = share_of_best(objective.policy)
    assert before < after < 0.75


def test_resumed_equals_uninterrupted(tmp_path) -> None:
    config = LONG.model_copy(
        update={
            "iterations": 6,
            "checkpoints": 3,
            "kl_coefficient": 0.1,
            "kl_gain": 0.5,
            "kl_limit": 1e-9,  # every rollout is over it, but patience lasts
            "kl_patience": 100,
        }
    )

    def run(where, *, die_at=None):
        objective = build(config, stop_ids=(2,))
        if die_at is not None:
            after = objective.after_iteration

            def dying(iteration, metrics):
                if iteration == die_at:
                    raise MemoryError
                return after(iteration, metrics)

            objective.after_iteration = dying
        train(objective, config, context(where))
        return objective

    whole = run(tmp_path / "whole")
    with pytest.raises(MemoryError):
        run(tmp_path / "cut", die_at=3)
    resumed = run(tmp_path / "cut")
    for name, value in whole.modules().state_dict().items():
        assert torch.equal(value, resumed.modules().state_dict()[name]), name
    assert whole.state() == resumed.state()
    assert whole.state()["over"] == 5  # all but the first, whose KL is 0
    assert whole.state()["first"]["length"] > 0
    assert whole.kl.coefficient != 0.1


def test_the_stop_rule_goes_back_to_the_last_good_weights(tmp_path) -> None:
    config = CONFIG.model_copy(update={"kl_limit": 0.05, "kl_patience": 2, "iterations": 40})
    objective = build(config)
    where = context(tmp_path)
    result = train(objective, config, where)
    assert "went back" in result.stopped
    assert result.iterations < 40
    policy, good = objective.policy.state_dict(), objective.good.state_dict()
    assert all(torch.equal(policy[name], good[name]) for name in policy)
    assert isinstance(where.progress, Quiet)
    assert any("stopped at iteration" in line for line in where.progress.lines)


def test_epochs_end_where_the_policy_has_moved_far() -> None:
    config = CONFIG.model_copy(update={"epoch_kl": 1e-6, "epochs": 5})
    objective = build(config)
    seen = 0
    for update in objective.updates(0):
        seen += 1
        with torch.no_grad():
            for parameter in objective.policy.parameters():
                parameter += 0.05
        for batch in update:
            objective.loss(batch)
    assert seen == 1
    assert objective.readings["epochs_cut"] == 1.0


def test_stop_rule_counts_in_a_row_and_takes_nan_as_ill() -> None:
    rule = StopRule(limit=10, patience=2)
    assert [rule.update(kl) for kl in (11, 9, 12, math.nan)] == [False, False, False, True]


def test_health_names_each_fault() -> None:
    ill = {
        "objective/kl": -2.0,
        "policy/clipfrac_avg": 0.5,
        "val/explained_variance": -0.4,
        "health/length_ratio": 2.0,
        "health/entropy_ratio": 0.1,
        "health/reward_length_correlation": 0.9,
        "health/stop_rate": 0.2,
        "frac_reward_zero_std": 0.9,
    }
    names = {finding.name for finding in examine(ill, iteration=10)}
    assert names == {
        "negative_kl",
        "clip_fraction_high",
        "value_explains_nothing",
        "length_growth",
        "entropy_collapse",
        "reward_follows_length",
        "few_answers_stop",
        "groups_without_signal",
    }
    assert examine({"health/length_ratio": 0.3}, 1)[0].name == "length_collapse"
    assert examine({"objective/kl": math.nan}, 1)[0].name == "negative_kl"
    well = {**dict.fromkeys(ill, 0.1), "health/length_ratio": 1.0, "health/entropy_ratio": 0.9}
    assert examine({**well, "health/stop_rate": 1.0}, 10) == []
    assert examine({"val/explained_variance": -0.4}, iteration=1) == []  # a critic needs a start


def test_correlation() -> None:
    assert correlation(np.array([1.0, 2, 3]), np.array([2.0, 4, 6])) == pytest.approx(1)
    assert correlation(np.ones(3), np.array([1.0, 2, 3])) == 0.0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("alignment")
    model = model_artefact(root / "model")
    feedback = feedback_artefact(root / "feedback", num=30)
    where = context(root / "reward", model=model, feedback=feedback)
    reward.run(where, reward.Config(epochs=1, precision="fp32", heldout_fraction=0.3))
    judge = artefact(where.out, "reward-model")
    return {"model": model, "reward": judge, "dataset": dataset_artefact(root / "data", num=8)}


STAGE = Config(
    iterations=3,
    prompts_per_iteration=4,
    answers_per_prompt=2,
    max_new_tokens=6,
    eval_prompts=4,
    eval_every=2,
    precision="fp32",
    checkpoints=3,
)


def test_the_stage_twice_gives_the_same_bytes(inputs, tmp_path) -> None:
    first, second = context(tmp_path / "a", **inputs), context(tmp_path / "b", **inputs)
    notes = ppo.run(first, STAGE)
    ppo.run(second, STAGE)
    names = sorted(path.name for path in first.out.iterdir())
    assert "model.safetensors" in names
    assert "tokenizer.json" in names
    assert same_bytes(first.out, second.out, names)
    assert 0 <= notes["figures"]["after/utility"] <= 1
    assert notes["counts"] == {"prompts": 8, "dropped": 0, "graded": 4}
    metrics = (first.run / "metrics.jsonl").read_text().splitlines()
    assert len(metrics) == 3
    assert "eval/utility" in metrics[0]
    assert "eval/utility" not in metrics[1]
    assert "eval/utility" in metrics[2]


def test_a_reward_model_of_another_tokenizer_is_refused(inputs, tmp_path) -> None:
    other = artefact(model_artefact(tmp_path / "other").path, "reward-model")
    path = other.path / "tokenizer.json"
    path.write_text(path.read_text().replace('"good', '"gooood', 1) + " ")
    with pytest.raises(ArtefactError, match="another tokenizer"):
        ppo.run(context(tmp_path / "x", **{**inputs, "reward": other}), STAGE)
