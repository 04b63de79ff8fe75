"""DPO: ln 2 first, numpy's formula, separate sequences, and the stage end to end."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch.nn.functional import logsigmoid
from train_tiny import (
    context,
    feedback_artefact,
    model_artefact,
    plain_logp,
    ranked_trees,
    same_bytes,
    tiny_model,
)

from rung.errors import DataError
from rung.model.forward import segment_sums, target_logps
from rung.model.load import load_model
from rung.train.objectives import dpo
from rung.train.objectives.dpo import Config, DPOObjective
from rung.train.pairs import chosen_nll, make_pairs
from rung.train.preference import Answers
from rung.train.preference_stage import run_preference
from rung.train.ranked import EpochOrder, RankedTree, cut_by_tokens, microbatches
from rung.train.reference import answer_logps_of, cached_logps

CONFIG = Config(precision="fp32", beta=0.3)


def _logps(model, trees, config=CONFIG, microbatch_tokens=64):
    return answer_logps_of(model, trees, config=config, microbatch_tokens=microbatch_tokens)


def _batch(trees, max_tokens=10_000):
    (batch,) = microbatches(trees, max_tokens=max_tokens, device="cpu")
    return batch


def test_pairs_of_a_ranking_with_ties() -> None:
    tree = ranked_trees()[1]  # ranks 2 1 1
    assert make_pairs(tree, "all").tolist() == [[1, 0], [2, 0]]
    assert make_pairs(tree, "best_worst").tolist() == [[1, 0]]
    flat = RankedTree(tree.tree, np.array([1, 1, 1]), tree.record)
    assert len(make_pairs(flat, "best_worst")) == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_first_loss_is_ln_2_and_every_reward_is_zero(smoothing) -> None:
    model, trees = tiny_model(), ranked_trees()
    config = CONFIG.model_copy(update={"label_smoothing": smoothing})
    part = DPOObjective(model, trees, _logps(model, trees), config).loss(_batch(trees))
    assert part.count == 3 + 2 + 2 + 3
    assert float(part.loss.detach()) / part.count == pytest.approx(math.log(2), abs=1e-5)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert part.metrics[name][0] == pytest.approx(0, abs=1e-4)


def test_loss_and_metrics_equal_plain_numpy_over_separate_sequences() -> None:
    policy, reference, trees = tiny_model(seed=1), tiny_model(seed=2), ranked_trees()
    config = CONFIG.model_copy(update={"nll_weight": 0.5})
    objective = DPOObjective(policy, trees, _logps(reference, trees), config)
    part = objective.loss(_batch(trees))
    losses, right, margins = [], 0, []
    for tree in trees:
        prompt, *answers = [segment.ids for segment in tree.tree]
        pi = np.array([plain_logp(policy, prompt, a) for a in answers])
        ref = np.array([plain_logp(reference, prompt, a) for a in answers])
        for w in range(3):
            for l in range(3):
                if tree.ranks[w] < tree.ranks[l]:
                    gap = 0.3 * ((pi[w] - pi[l]) - (ref[w] - ref[l]))
                    losses.append(-np.log(expit(gap)) - 0.5 * pi[w] / len(answers[w]))
                    margins.append(gap)
                    right += gap > 0
    assert part.count == len(losses)
    assert float(part.loss.detach()) == pytest.approx(sum(losses), rel=1e-5)
    assert part.metrics["rewards/margins"][0] == pytest.approx(sum(margins), abs=1e-4)
    assert part.metrics["rewards/accuracies"][0] == right


def test_gradient_of_microbatches_is_that_of_the_whole() -> None:
    policy, trees = tiny_model(seed=1), ranked_trees(6)
    objective = DPOObjective(policy, trees, _logps(tiny_model(seed=2), trees), CONFIG)

    def gradient(max_tokens):
        policy.zero_grad()
        count = 0.0
        for batch in microbatches(trees, max_tokens=max_tokens, device="cpu"):
            part = objective.loss(batch)
            part.loss.backward()
            count += part.count
        return torch.cat([p.grad.flatten() / count for p in policy.parameters()])

    torch.testing.assert_close(gradient(15), gradient(10_000), atol=1e-6, rtol=1e-5)


def test_a_step_down_the_gradient_widens_the_margin() -> None:
    policy, trees = tiny_model(), ranked_trees()
    objective = DPOObjective(policy, trees, _logps(policy, trees), CONFIG)
    batch = _batch(trees)
    objective.loss(batch).loss.backward()
    with torch.no_grad():
        for p in policy.parameters():
            p -= 1e-3 * p.grad
    assert objective.loss(batch).metrics["rewards/margins"][0] > 0


def test_chosen_nll_is_per_token() -> None:
    answers = Answers(torch.tensor([-6.0, -1.0]), torch.zeros(2), torch.tensor([3, 1]))
    assert chosen_nll(answers, torch.tensor([[0, 1], [1, 0]])).tolist() == [2.0, 1.0]


def test_the_gradient_is_the_plain_formula_bit_by_bit() -> None:
    """What DPO was before its parts could be exchanged: equal configs keep their artefacts."""
    model, trees, config = (
        tiny_model(seed=1),
        ranked_trees(),
        CONFIG.model_copy(update={"nll_weight": 1}),
    )
    reference = _logps(tiny_model(seed=2), trees)
    objective, batch = DPOObjective(model, trees, reference, config), _batch(trees)

    def gradient(loss):
        model.zero_grad()
        loss.backward()
        return [p.grad.clone() for p in model.parameters()]

    new = gradient(objective.loss(batch).loss)
    per_token, _ = target_logps(model, batch.forest)
    logps = segment_sums(per_token, batch.forest)[torch.from_numpy(batch.forest.host.answers)]
    cuts = np.cumsum([0, *(len(tree.ranks) for tree in trees)])[:-1]
    found = [make_pairs(tree, "all") + cut for tree, cut in zip(trees, cuts, strict=True)]
    pairs = torch.from_numpy(np.concatenate(found))
    lengths = torch.from_numpy(np.concatenate([tree.lengths for tree in trees]))
    rewards = config.beta * (logps - torch.from_numpy(np.concatenate(reference)))
    margins = rewards[pairs[:, 0]] - rewards[pairs[:, 1]]
    losses = -(1 - 0.0) * logsigmoid(margins) - 0.0 * logsigmoid(-margins)
    losses = losses + 1.0 * -(logps / lengths).index_select(0, pairs[:, 0])
    old = gradient(losses.sum())
    assert all(torch.equal(a, b) for a, b in zip(new, old, strict=True))


def test_cached_reference_is_read_back_and_keyed(tmp_path) -> None:
    trees = ranked_trees()
    options = {"config": CONFIG, "microbatch_tokens": 64, "folder": tmp_path}
    first = cached_logps(tiny_model(seed=1), trees, identity={"model": "a"}, **options)
    again = cached_logps(tiny_model(seed=2), trees, identity={"model": "a"}, **options)
    other = cached_logps(tiny_model(seed=2), trees, identity={"model": "b"}, **options)
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(again))
    assert not np.allclose(np.concatenate(first), np.concatenate(other))
    assert len(list(tmp_path.iterdir())) == 2  # no partial file is left


def test_every_sample_once_an_epoch_and_none_lost_in_cuts() -> None:
    order = EpochOrder(num_samples=10, per_update=4, seed=3)
    epochs = [np.concatenate([order.at(3 * e + k) for k in range(3)]) for e in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()
    trees = [tree.tree for tree in ranked_trees(9)]
    runs = cut_by_tokens(trees, 30)
    assert [i for run in runs for i in run] == list(range(9))
    sizes = [sum(len(s.ids) for s in tree) for tree in trees]
    assert all(sum(sizes[i] for i in run) <= 30 or len(run) == 1 for run in runs)


def test_the_stage_end_to_end(tmp_path) -> None:
    inputs = {
        "model": model_artefact(tmp_path / "model"),
        "feedback": feedback_artefact(tmp_path / "feedback", num=40),
    }
    config = Config(
        epochs=6, rankings_per_update=8, lr=3e-3, precision="fp32", heldout_fraction=0.3
    )
    first, second = context(tmp_path / "a", **inputs), context(tmp_path / "b", **inputs)
    notes = dpo.run(first, config)
    # 6 FLOP per parameter and token to train, 2 for the reference, which ran once in six epochs
    size = sum(p.numel() for p in load_model(first.out).parameters())
    assert notes["flops"] == pytest.approx((6 + 2 / 6) * size * notes["tokens"])
    assert notes["figures"]["heldout/loss"] < 0.4
    assert notes["figures"]["heldout/rewards/accuracies"] > 0.9
    dpo.run(second, config)
    assert same_bytes(first.out, second.out, sorted(p.name for p in first.out.iterdir()))

    # Killed after its first checkpoint: the same bytes, with the reference read from its file.
    third = context(tmp_path / "c", **inputs)
    _run_until_checkpoint(third, config)
    dpo.run(third, config)
    assert same_bytes(first.out, third.out, ["model.safetensors"])


def _run_until_checkpoint(where, config) -> None:
    """Run the stage; die as soon as a checkpoint exists."""

    class Killed(BaseException):
        pass

    class Mortal(DPOObjective):
        def updates(self, iteration):
            if any((where.run / "checkpoints").glob("*")):
                raise Killed
            return super().updates(iteration)

    with pytest.raises(Killed):
        run_preference(where, config, Mortal)


def test_feedback_of_ties_alone_is_refused(tmp_path) -> None:
    inputs = {
        "model": model_artefact(tmp_path / "model"),
        "feedback": feedback_artefact(tmp_path / "feedback", num=12),
    }
    path = inputs["feedback"].path / "rankings.jsonl"
    text = path.read_text()
    for old in ("[1, 2, 2]", "[2, 1, 2]", "[2, 2, 1]"):
        text = text.replace(f'"ranks": {old}', '"ranks": [1, 1, 1]')
    for line in {l.split('"ranks": ')[1][:9] for l in text.splitlines()}:
        text = text.replace(f'"ranks": {line}', '"ranks": [1, 1, 1]')
    path.write_text(text)
    with pytest.raises(DataError, match="different rank"):
        dpo.run(context(tmp_path / "x", **inputs), Config(heldout_fraction=0.4))
