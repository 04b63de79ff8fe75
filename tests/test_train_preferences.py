"""The siblings of DPO: first values by hand, TRL's formulas on separate sequences, the stages."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.special import expit
from train_tiny import (
    context,
    feedback_artefact,
    labelled_artefact,
    model_artefact,
    plain_logp,
    ranked_trees,
    same_bytes,
    tiny_model,
)

from rung.config import parse_config
from rung.errors import ConfigError, DataError
from rung.feedback.labels import label_answers
from rung.model.load import context_length
from rung.train import labelled
from rung.train.labelled import balance, strangers
from rung.train.objectives import apo, dpo, ipo, kto, orpo, reward, simpo
from rung.train.objectives.orpo import log_odds
from rung.train.preference import Answers
from rung.train.preference_stage import run_preference, summary
from rung.train.ranked import microbatches
from rung.train.reference import answer_logps_of

SIBLINGS = {
    "dpo": (dpo, dpo.DPOObjective),
    "ipo": (ipo, ipo.IPOObjective),
    "apo": (apo, apo.APOObjective),
    "simpo": (simpo, simpo.SimPOObjective),
    "orpo": (orpo, orpo.ORPOObjective),
    "kto": (kto, kto.KTOObjective),
}


def labelled_trees(num=4):
    """Ranked trees with the best answers desirable, the worst undesirable, others unsaid."""
    found = []
    for tree in ranked_trees(num):
        best, worst = tree.ranks.min(), tree.ranks.max()
        labels = [True if r == best else False if r == worst else None for r in tree.ranks]
        kept = [i for i, label in enumerate(labels) if label is not None]
        record = dataclasses.replace(tree.record, labels=[labels[i] for i in kept])
        segments = (tree.tree[0], *(tree.tree[1 + i] for i in kept))
        found.append(
            dataclasses.replace(tree, tree=segments, ranks=tree.ranks[kept], record=record)
        )
    return found


def build(name, model, reference, trees, **options):
    module, kind = SIBLINGS[name]
    config = module.Config(precision="fp32", **options)
    wanted = kind.reference_trees(trees, config, limit=context_length(model))
    known = (
        answer_logps_of(reference, wanted, config=config, microbatch_tokens=64) if wanted else []
    )
    return kind(model, trees, known, config)


def whole(trees):
    (batch,) = microbatches(trees, max_tokens=10_000, device="cpu")
    return batch


def of_scalars(name, chosen, rejected, *, lengths=(1, 1), reference=(0.0, 0.0), **options):
    """(loss of one pair, its slopes in the log-probabilities of chosen and rejected answer)."""
    tree = labelled_trees(1)[0]
    pair = dataclasses.replace(tree, tree=tree.tree[:3], ranks=np.array([1, 2]))
    pair = dataclasses.replace(pair, record=dataclasses.replace(pair.record, labels=[True, False]))
    module, kind = SIBLINGS[name]
    config = module.Config(**options)
    wanted = kind.reference_trees([pair], config, limit=64)
    objective = kind(
        tiny_model(), [pair], [np.zeros(len(t.ranks), np.float32) for t in wanted], config
    )
    logps = torch.tensor([chosen, rejected], requires_grad=True)
    part = objective.judge(Answers(logps, torch.tensor(reference), torch.tensor(lengths)), [pair])
    part.loss.backward()
    return float(part.loss.detach()) / part.count, logps.grad.tolist()


def test_first_values_by_hand() -> None:
    """The policy is its own reference: every log-ratio is 0."""
    at = {"reference": (-5.0, -9.0), "lengths": (2, 3)}
    first = {name: of_scalars(name, -5.0, -9.0, **at)[0] for name in ("dpo", "ipo", "apo", "kto")}
    assert first["dpo"] == pytest.approx(math.log(2))
    assert first["ipo"] == pytest.approx(1 / (4 * 0.1**2))  # (0 - 1 / 0.2)^2 = 25
    assert first["apo"] == pytest.approx(0.5 + 0.5)
    assert first["kto"] == pytest.approx(0.5)
    weighted, _ = of_scalars("kto", -5.0, -9.0, desirable_weight=1.5, **at)
    assert weighted == pytest.approx((1.5 * 0.5 + 0.5) / 2)
    # equal log-probability per token: a margin of 0, short of gamma by 0.5
    even, _ = of_scalars("simpo", -4.0, -6.0, lengths=(2, 3), gamma=0.5)
    assert even == pytest.approx(-math.log(expit(-0.5)))
    # equal odds: beta ln 2 beside 2 nats per token of the chosen answer
    even, _ = of_scalars("orpo", -4.0, -6.0, lengths=(2, 3), beta=0.3)
    assert even == pytest.approx(2.0 + 0.3 * math.log(2))


def test_values_by_hand() -> None:
    """TRL's formulas on the same numbers: log-ratios 1.0 and -0.5, of 2 and 5 tokens."""
    at = {"lengths": (2, 5), "reference": (-5.0, -8.0), "beta": 0.4}
    given = (-4.0, -8.5)
    per_token = 1.0 / 2 - (-0.5) / 5
    found = {name: of_scalars(name, *given, **at)[0] for name in ("dpo", "ipo", "apo", "kto")}
    assert found["dpo"] == pytest.approx(-math.log(expit(0.4 * 1.5)))
    assert found["ipo"] == pytest.approx((per_token - 1 / (2 * 0.4)) ** 2)
    assert found["apo"] == pytest.approx((1 - expit(0.4)) + expit(-0.2))
    assert found["kto"] == pytest.approx(((1 - expit(0.4)) + (1 - expit(0.2))) / 2)
    norm, _ = of_scalars("dpo", *given, per_token=True, **at)
    assert norm == pytest.approx(-math.log(expit(0.4 * per_token)))
    sums, _ = of_scalars("ipo", *given, per_token=False, **at)
    assert sums == pytest.approx((1.5 - 1.25) ** 2)
    robust, _ = of_scalars("dpo", *given, label_smoothing=0.2, robust=True, **at)
    l, swapped = -math.log(expit(0.6)), -math.log(expit(-0.6))
    assert robust == pytest.approx((0.8 * l - 0.2 * swapped) / 0.6)
    hinge, _ = of_scalars("dpo", *given, loss="hinge", **at)
    assert hinge == pytest.approx(1 - 0.6)
    at = {"lengths": (2, 5), "beta": 0.4}
    means = (-2.0, -1.7)
    found = {name: of_scalars(name, *given, **at)[0] for name in ("simpo", "orpo")}
    assert found["simpo"] == pytest.approx(
        -math.log(expit(0.4 * (means[0] - means[1] - 0.5 / 0.4)))
    )
    odds = [m - math.log(1 - math.exp(m)) for m in means]
    assert found["orpo"] == pytest.approx(2.0 - 0.4 * math.log(expit(odds[0] - odds[1])))


@pytest.mark.parametrize("name", SIBLINGS)
def test_the_chosen_answer_is_pulled_up_and_the_rejected_one_pushed_down(name) -> None:
    _, (chosen, rejected) = of_scalars(name, -4.0, -4.5, lengths=(3, 3), reference=(-4.2, -4.4))
    assert chosen < 0 < rejected


@pytest.mark.parametrize("name", ["dpo", "ipo", "simpo", "orpo", "kto"])
def test_an_anchor_adds_the_likelihood_of_the_chosen_answer(name) -> None:
    at = {"lengths": (4, 3)}
    plain, _ = of_scalars(name, -6.0, -4.5, nll_weight=0.0, **at)
    anchored, _ = of_scalars(name, -6.0, -4.5, nll_weight=2.0, **at)
    per_pair = 2.0 * 6.0 / 4 / (2 if name == "kto" else 1)  # KTO's mean is over both answers
    assert anchored - plain == pytest.approx(per_pair)


def test_odds_hold_at_both_ends() -> None:
    # p = 1/2: 0; p = e^-50: -50 to the last digit; p = 1: finite, as is its slope
    logps = torch.tensor([math.log(0.5), -50.0, 0.0], requires_grad=True)
    values = log_odds(logps)
    values.sum().backward()
    assert values[:2].tolist() == pytest.approx([0.0, -50.0], abs=1e-6)
    assert torch.isfinite(values).all()
    assert torch.isfinite(logps.grad).all()


BETA = 0.3


def _odds(mean):
    return mean - np.log1p(-np.exp(mean))


# TRL's losses of one pair: log-ratios and log-probabilities per token of either answer,
# chosen first, with their lengths
PLAIN = {
    "ipo": lambda r, m, n: (r[0] / n[0] - r[1] / n[1] - 1 / (2 * BETA)) ** 2,
    "apo": lambda r, m, n: 1 - expit(BETA * r[0]) + expit(BETA * r[1]),
    "simpo": lambda r, m, n: -np.log(expit(BETA * (m[0] - m[1] - 0.5 / BETA))),
    "orpo": lambda r, m, n: -m[0] - BETA * np.log(expit(_odds(m[0]) - _odds(m[1]))),
}


def plain_losses(name, pi, ref, lengths, good, kl):
    """The losses of one tree from log-probabilities of its answers."""
    ratios, means = pi - ref, pi / lengths
    if name == "kto":
        gap = BETA * (ratios - kl)
        return list(np.where(good, 1 - expit(gap), 1 - expit(-gap)))
    pairs = [[w, l] for w in np.flatnonzero(good) for l in np.flatnonzero(~good)]
    return [PLAIN[name](ratios[pair], means[pair], lengths[pair]) for pair in pairs]


@pytest.mark.parametrize("name", ["ipo", "apo", "simpo", "orpo", "kto"])
def test_forests_equal_separate_sequences(name) -> None:
    policy, frozen, trees = tiny_model(seed=1), tiny_model(seed=2), labelled_trees()
    objective = build(name, policy, frozen, trees, beta=BETA)
    losses, kl = [], 0.0

    def alone(model, prompt, answers):
        return np.array([plain_logp(model, prompt, a) for a in answers])

    if name == "kto":
        update = [trees[i] for i in objective.order.at(0)]
        ratios = [
            alone(policy, a.tree[0].ids, [s.ids for s in b.tree[1:]])
            - alone(frozen, a.tree[0].ids, [s.ids for s in b.tree[1:]])
            for a, b in zip(update, update[-1:] + update[:-1], strict=True)
        ]
        kl = max(0.0, float(np.concatenate(ratios).mean()))
        objective.look(0)
        assert objective.kl == pytest.approx(kl, abs=1e-5)
    for tree in trees:
        prompt, *answers = [segment.ids for segment in tree.tree]
        pi, ref = alone(policy, prompt, answers), alone(frozen, prompt, answers)
        good = np.array([label is True for label in tree.record.labels])
        losses += plain_losses(name, pi, ref, tree.lengths, good, kl)
    part = objective.loss(whole(trees))
    assert part.count == len(losses)
    assert float(part.loss.detach()) == pytest.approx(sum(losses), rel=1e-5)


def test_the_kl_of_kto_is_that_of_the_update_whatever_the_microbatches() -> None:
    policy, trees = tiny_model(seed=1), labelled_trees(6)

    def gradient(max_tokens):
        objective = build("kto", policy, tiny_model(seed=2), trees, beta=0.3)
        objective.config = objective.config.model_copy(update={"microbatch_tokens": max_tokens})
        policy.zero_grad()
        count = 0.0
        (update,) = objective.updates(0)
        for batch in update:
            part = objective.loss(batch)
            part.loss.backward()
            count += part.count
        assert objective.kl > 0
        return torch.cat([p.grad.flatten() / count for p in policy.parameters()]), len(update)

    (small, many), (large, one) = gradient(15), gradient(10_000)
    assert many > one == 1
    torch.testing.assert_close(small, large, atol=1e-6, rtol=1e-5)


def test_strangers_are_the_answers_of_the_update_under_other_prompts() -> None:
    trees = labelled_trees(5)
    config = kto.Config(rankings_per_update=2, epochs=2)
    objective = build("kto", tiny_model(), tiny_model(), trees, rankings_per_update=2)
    a, b = (trees[i] for i in objective.order.at(0))
    limit = len(a.tree[0].ids) + 2  # a context in which two tokens of an answer have room
    updates = strangers(trees, config, limit=limit)
    assert [len(update) for update in updates] == [2, 2, 0, 2, 2, 0]  # one alone has none
    assert updates[0][0].tree[0] is a.tree[0]
    assert [s.ids.tolist() for s in updates[0][0].tree[1:]] == [
        s.ids[:2].tolist() for s in b.tree[1:]
    ]
    whole = strangers(trees, config, limit=1000)[0][0].tree[1:]
    assert [s.ids.tolist() for s in whole] == [s.ids.tolist() for s in b.tree[1:]]


def test_what_is_said_of_the_balance() -> None:
    even, twice = kto.Config(), kto.Config(desirable_weight=2.0)
    assert balance(100, 90, even) == ["100 desirable and 90 undesirable answers to train on"]
    (_, line) = balance(100, 50, even)  # 2 to 1: half of the weight, up to two thirds
    assert "2.00 to 1" in line
    assert "desirable_weight to 0.5 to 0.667" in line
    (_, line) = balance(60, 60, twice)
    assert "desirable_weight to 1 to 1.33" in line
    (_, line) = balance(5, 0, even)
    assert "all of one kind" in line


def test_a_margin_in_the_data_must_be_led_by() -> None:
    tree = labelled_trees(1)[0]
    pair = dataclasses.replace(tree, tree=tree.tree[:3], ranks=np.array([1, 2]))

    def loss(name, margin, **options):
        record = dataclasses.replace(pair.record, labels=None, margin=margin)
        known = dataclasses.replace(pair, record=record)
        kind, config = SIBLINGS[name][1], SIBLINGS[name][0].Config(**options)
        wanted = kind.reference_trees([known], config, limit=64)
        objective = kind(tiny_model(), [known], [np.zeros(2, np.float32) for _ in wanted], config)
        answers = Answers(torch.tensor([-4.0, -6.0]), torch.zeros(2), torch.tensor([1, 1]))
        return float(objective.judge(answers, [known]).loss)

    assert loss("dpo", 0.3) == pytest.approx(-math.log(expit(0.1 * 2 - 0.3)))
    assert loss("ipo", 0.3) == pytest.approx(((0.2 - 0.3 - 0.5) / 0.1) ** 2)
    assert loss("simpo", 0.3) == pytest.approx(-math.log(expit(2.0 * 2 - 0.5 - 0.3)))
    assert loss("apo", 0.3) == loss("apo", None)
    assert loss("orpo", 0.3, nll_weight=0) > loss("orpo", None, nll_weight=0)


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_a_weight_of_two_is_the_row_twice(name) -> None:
    model, trees = tiny_model(), labelled_trees(3)
    heavy = [dataclasses.replace(trees[0], record=dataclasses.replace(trees[0].record, weight=2.0))]
    twice = [*trees, dataclasses.replace(trees[0])]

    def loss(trees):
        objective = build(name, model, tiny_model(seed=2), trees)
        part = objective.loss(whole(trees))
        return float(part.loss.detach()), part.count

    assert loss(heavy + trees[1:]) == pytest.approx(loss(twice), rel=1e-5)


def test_the_reward_model_hears_margins_and_weights() -> None:
    scores, ranks, ranking = torch.tensor([1.0, 0.0]), torch.tensor([1, 2]), torch.tensor([0, 0])
    margin, weights = torch.tensor([[0.3], [0.3]]), torch.tensor([2.0, 2.0])
    loss, count = reward.ranking_nll(scores, ranks, ranking, margin=margin, weights=weights)
    assert (float(loss), count) == (pytest.approx(-2 * math.log(expit(1.0 - 0.3))), 2.0)


def test_robust_without_a_share_of_wrong_labels_is_refused() -> None:
    with pytest.raises(ConfigError, match="say how many with label_smoothing"):
        parse_config(dpo.Config, {"robust": True})


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    return {
        "model": model_artefact(root / "model"),
        "feedback": feedback_artefact(root / "feedback", num=30),
    }


OPTIONS = {"rankings_per_update": 8, "lr": 3e-3, "precision": "fp32", "heldout_fraction": 0.3}


@pytest.mark.parametrize("name", ["ipo", "apo", "simpo", "orpo", "kto"])
def test_the_stages_end_to_end(tmp_path, inputs, name) -> None:
    module, kind = SIBLINGS[name]
    where = context(tmp_path / name, **inputs)
    notes = module.run(where, module.Config(epochs=5, **OPTIONS))
    figures = notes["figures"]
    assert figures["heldout/rewards/accuracies"] > 0.9
    assert figures["heldout/loss"] < figures["heldout_before/loss"]
    low, high = (figures[f"heldout/rewards/accuracies_{end}"] for end in ("low", "high"))
    assert low <= figures["heldout/rewards/accuracies"] <= high
    assert {"model.safetensors", "tokenizer.json"} <= {p.name for p in where.out.iterdir()}
    # what has no reference never asks one
    kept = list(where.run.glob("reference-*.safetensors"))
    assert len(kept) == (1 if kind.has_reference else 0)
    assert any(line.startswith("held-out: loss") for line in where.progress.lines)


def test_a_killed_kto_ends_in_the_same_bytes(tmp_path, inputs) -> None:
    config = kto.Config(epochs=2, **OPTIONS)
    peace, killed = context(tmp_path / "a", **inputs), context(tmp_path / "b", **inputs)
    kto.run(peace, config)

    class Killed(BaseException):
        pass

    class Mortal(kto.KTOObjective):
        def updates(self, iteration):
            if any((killed.run / "checkpoints").glob("*")):
                raise Killed
            return super().updates(iteration)

    with pytest.raises(Killed):
        run_preference(killed, config, Mortal)
    kto.run(killed, config)
    assert same_bytes(peace.out, killed.out, sorted(p.name for p in peace.out.iterdir()))


def test_thumbs_on_single_answers_are_enough_for_kto_and_nothing_for_pairs(
    tmp_path, inputs
) -> None:
    thumbs = {**inputs, "feedback": labelled_artefact(tmp_path / "thumbs", num=40)}
    where = context(tmp_path / "kto", **thumbs)
    figures = kto.run(where, kto.Config(epochs=4, **OPTIONS))["figures"]
    assert figures["heldout/rewards/margins"] > 0.2
    assert figures["heldout/rewards/chosen"] > 0 > figures["heldout/rewards/rejected"]
    assert "heldout/rewards/accuracies" not in figures
    assert any("desirable and" in line for line in where.progress.lines)
    with pytest.raises(DataError, match="different rank"):
        dpo.run(context(tmp_path / "dpo", **thumbs), dpo.Config())
    with pytest.raises(DataError, match=r"single answers, which order nothing.*`rung kto`"):
        reward.run(context(tmp_path / "reward", **thumbs), reward.Config())


def test_rankings_of_ties_are_nothing_to_kto() -> None:
    records = [tree.record for tree in labelled_trees(1)]
    flat = [dataclasses.replace(records[0], ranks=[1, 1], flags=[[], []], labels=None)]
    assert label_answers(flat, rule="best_worst") == []
    with pytest.raises(DataError, match="choose another labels_from"):
        labelled.LabelledObjective.usable(flat, kto.Config())


def test_a_fall_of_the_chosen_answers_is_told() -> None:
    before = {"loss": 0.69, "logps/chosen": -40.0}
    assert len(summary(before, {"loss": 0.2, "logps/chosen": -45.0})) == 1
    _, line = summary(before, {"loss": 0.2, "logps/chosen": -55.0})
    assert "from -40.0 to -55.0" in line
    assert "nll_weight" in line
