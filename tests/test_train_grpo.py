"""GRPO: the loss in plain numpy, the group in one forest, a bandit with a known optimum."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from train_tiny import (
    artefact,
    context,
    dataset_artefact,
    feedback_artefact,
    model_artefact,
    same_bytes,
    tiny_model,
)

from rung.train.loop import train
from rung.train.objectives import grpo, reward
from rung.train.objectives.grpo import Config, GRPOObjective
from rung.train.rollout import Prompt

BEST, WORST = 7, 3


class FirstToken:
    """Rewards an answer by its first token."""

    def scores_and_features(self, forest):
        host = forest.host
        first = host.ids[host.seg_start[host.seg_parent >= 0]]
        scores = torch.from_numpy((first == BEST).astype(np.float32) - (first == WORST))
        return scores, torch.zeros(len(forest.target), 1)


CONFIG = Config(
    iterations=15,
    prompts_per_iteration=4,
    answers_per_prompt=16,
    max_new_tokens=1,
    missing_stop_penalty=0.0,
    beta=0.0,
    kl_limit=100.0,
    epoch_kl=10.0,
    lr=1e-2,
    precision="fp32",
)


def build(config=CONFIG, *, stop_ids=()):
    prompts = [Prompt(np.array([1, 8 + index], dtype=np.int32), {}) for index in range(4)]
    return GRPOObjective(tiny_model(16), FirstToken(), prompts, config, stop_ids=stop_ids)


@torch.no_grad()
def _plain_logps(model, forest) -> np.ndarray:
    """Log-probability of each answer token, one answer at a time, transformers' own attention."""
    host, out = forest.host, []
    model.config._attn_implementation = "eager"
    for child in np.flatnonzero(host.seg_parent >= 0):
        up = host.seg_parent[child]
        prompt = host.ids[host.seg_start[up] : host.seg_end[up]]
        answer = host.ids[host.seg_start[child] : host.seg_end[child]]
        ids = np.concatenate([prompt, answer])
        table = log_softmax(model(torch.from_numpy(ids)[None]).logits[0].double().numpy(), -1)
        out += [table[i - 1, ids[i]] for i in range(len(prompt), len(ids))]
    model.config._attn_implementation = "rung_forest"
    return np.array(out)


def test_loss_equals_plain_numpy_over_separate_sequences() -> None:
    config = CONFIG.model_copy(
        update={
            "max_new_tokens": 5,
            "answers_per_prompt": 6,
            "missing_stop_penalty": 0.5,
            "beta": 0.3,
            "minibatches": 1,
        }
    )
    objective = build(config, stop_ids=(2, 5))
    rollouts = []
    prepare = objective.prepare
    objective.prepare = lambda rollout: rollouts.append(rollout) or prepare(rollout)
    (batch,) = next(iter(objective.updates(0)))
    (rollout,) = rollouts
    first = objective.loss(batch)
    assert first.metrics["val/ratio"][0] == first.count
    assert first.metrics["kl"][0] == 0.0

    with torch.no_grad():  # now the ratio, the clip and the KL matter
        for parameter in objective.policy.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    part = objective.loss(batch)

    now = _plain_logps(objective.policy, batch.forest)
    old = _plain_logps(objective.reference, batch.forest)
    rewards = (rollout.scores - 0.5 * (1 - rollout.stopped)).reshape(4, 6)
    advantage = np.repeat((rewards - rewards.mean(1, keepdims=True)).ravel(), rollout.lengths)
    ratio = np.exp(now - old)
    gain = np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.28) * advantage)
    k3 = np.exp(old - now) - (old - now) - 1
    assert part.count == len(now)
    assert float(part.loss.detach()) == pytest.approx((-gain + 0.3 * k3).sum(), rel=1e-4)
    assert part.metrics["kl"][0] == pytest.approx(k3.sum(), rel=1e-4)
    active = (np.clip(ratio, 0.8, 1.28) * advantage < ratio * advantage).sum()
    assert part.metrics["clip_ratio/region_mean"][0] == active > 0


def test_a_group_is_one_tree_with_one_prompt() -> None:
    objective = build()
    (forest,) = {id(b): b.forest for b in next(iter(objective.updates(0)))}.values()
    host = forest.host
    assert (host.seg_parent == -1).sum() == 2  # two of four prompts: minibatches is 2
    assert (host.seg_parent >= 0).sum() == 2 * 16


def test_the_bandit_finds_its_best_arm(tmp_path) -> None:
    objective = build()
    where = context(tmp_path)
    result = train(objective, CONFIG, where)
    objective.policy.config._attn_implementation = "eager"
    with torch.no_grad():
        logits = objective.policy(torch.tensor([[1, 8], [1, 11]])).logits[:, -1]
    assert float(torch.softmax(logits, -1)[:, BEST].min()) > 0.9
    assert result.last["reward"] > 0.8


def test_equal_rewards_teach_nothing_and_are_named(tmp_path) -> None:
    objective = build(CONFIG.model_copy(update={"iterations": 2}))
    objective.scorer.scores_and_features = lambda forest: (
        torch.full((32,), 0.1),
        torch.zeros(32, 1),
    )
    before = {name: value.clone() for name, value in objective.policy.state_dict().items()}
    where = context(tmp_path)
    result = train(objective, objective.config, where)
    assert result.last["frac_reward_zero_std"] == 1.0
    assert any("groups_without_signal" in line for line in where.progress.lines)
    after = objective.policy.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_stage_twice_gives_the_same_bytes(tmp_path) -> None:
    model = model_artefact(tmp_path / "model")
    feedback = feedback_artefact(tmp_path / "feedback", num=30)
    where = context(tmp_path / "reward", model=model, feedback=feedback)
    reward.run(where, reward.Config(epochs=1, precision="fp32", heldout_fraction=0.3))
    inputs = {
        "model": model,
        "reward": artefact(where.out, "reward-model"),
        "dataset": dataset_artefact(tmp_path / "data", num=8),
    }
    config = Config(
        iterations=3,
        prompts_per_iteration=4,
        answers_per_prompt=3,
        max_new_tokens=6,
        eval_prompts=0,
        precision="fp32",
    )
    first, second = context(tmp_path / "a", **inputs), context(tmp_path / "b", **inputs)
    notes = grpo.run(first, config)
    grpo.run(second, config)
    assert same_bytes(first.out, second.out, sorted(p.name for p in first.out.iterdir()))
    assert not same_bytes(first.out, model.path, ["model.safetensors"])
    assert "after/utility" not in notes["figures"]
