"""The ranking loss against hand arithmetic and a second form; the scorecard; the stage itself."""

import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import expit, logsumexp
from train_tiny import (
    artefact,
    context,
    feedback_artefact,
    model_artefact,
    same_bytes,
    tiny_model,
)

from rung.errors import ArtefactError, DataError
from rung.model.attention import to_torch
from rung.model.heads import RewardModel, load_reward_model
from rung.model.load import load_model
from rung.tokens.forest import document, group, pack
from rung.train import scorecard
from rung.train.objectives import reward
from rung.train.objectives.reward import (
    Config,
    EvidenceBatch,
    centring_penalty,
    ranking_loss,
    ranking_nll,
)

ONE = torch.zeros(3, dtype=torch.long)


def _nll(scores, ranks, ranking=None, **options):
    ranking = [0] * len(scores) if ranking is None else ranking
    loss, count = ranking_nll(
        torch.tensor(scores, dtype=torch.float64),
        torch.tensor(ranks),
        torch.tensor(ranking),
        **options,
    )
    return float(loss), count


def test_three_answers_by_hand() -> None:
    # best ln 3, then ln 2, then ln 1: P = 3/6 * 2/3 = 1/3
    loss, count = _nll([math.log(2), math.log(3), 0.0], [2, 1, 3])
    assert (loss, count) == (pytest.approx(math.log(3)), 2)


def test_probabilities_of_all_orders_sum_to_one() -> None:
    scores = [0.3, -1.2, 2.0, 0.4]
    total = sum(math.exp(-_nll(scores, list(p))[0]) for p in itertools.permutations([1, 2, 3, 4]))
    assert total == pytest.approx(1.0)


def test_two_answers_are_bradley_terry_also_with_a_margin() -> None:
    # -log sigmoid(1.5 - 0.2 - m)
    for margin in (0.0, 0.7):
        loss, count = _nll([0.2, 1.5], [2, 1], margin=margin)
        assert (loss, count) == (pytest.approx(-math.log(expit(1.3 - margin))), 1)


def test_each_pair_can_have_a_margin_of_its_own() -> None:
    # TRL's reward loss with margins: -log sigmoid(chosen - rejected - margin), summed over pairs
    margin = torch.tensor([2.0, 2.0, 0.0, 0.0])  # of the ranking that an answer is of
    loss, count = _nll([1.5, 0.2, 0.1, 0.4], [1, 2, 1, 2], [0, 0, 1, 1], margin=margin)
    expected = -math.log(expit(1.3 - 2.0)) - math.log(expit(-0.3))
    assert (loss, count) == (pytest.approx(expected), 2)


def test_margins_of_the_feedback_reach_the_loss() -> None:
    def tree(margin):
        source = {} if margin is None else {"margin": margin}
        record = SimpleNamespace(source=source)
        return SimpleNamespace(ranks=np.array([1, 2]), record=record)

    trees = (tree(0.5), tree(None))
    batch = EvidenceBatch(
        torch.zeros(4, 1),
        torch.tensor([1, 2, 1, 2]),
        torch.tensor([0, 0, 1, 1]),
        trees,  # type: ignore[arg-type]
    )
    scores = torch.tensor([1.5, 0.2, 0.1, 0.4])
    sums = ranking_loss(scores, batch, Config(margin=0.25, centring=0.0), tokens=0)
    expected = -math.log(expit(1.3 - 0.75)) - math.log(expit(-0.3 - 0.25))
    assert float(sums.loss) == pytest.approx(expected, rel=1e-5)


def test_tied_answers_run_against_the_worse_one_only() -> None:
    # two winners, each against the third; they do not run against each other
    loss, count = _nll([0.9, 0.1, -0.4], [1, 1, 2])
    assert (loss, count) == (pytest.approx(-math.log(expit(1.3)) - math.log(expit(0.5))), 2)
    assert _nll([0.9, 0.1], [1, 1]) == (0.0, 0)


def test_several_rankings_at_once_equal_a_plain_loop() -> None:
    draw = np.random.default_rng(0)
    scores, ranks, ranking, expected, stages = [], [], [], 0.0, 0
    for index, size in enumerate((2, 5, 3)):
        s, r = draw.normal(size=size), draw.integers(1, 4, size=size)
        for i in range(size):
            runners = [j for j in range(size) if r[j] > r[i] or j == i]
            if len(runners) > 1:
                lead = [s[j] + 0.3 * (r[j] > r[i]) for j in runners]
                expected += logsumexp(lead) - s[i]
                stages += 1
        scores += s.tolist()
        ranks += r.tolist()
        ranking += [index] * size
    assert _nll(scores, ranks, ranking, margin=0.3) == (pytest.approx(expected), stages)


def test_centring_is_the_pair_form_for_two() -> None:
    scores = torch.tensor([1.0, 2.0, -1.0, 1.0])
    value = centring_penalty(scores, ONE.new_tensor([1, 2, 1, 2]), ONE.new_tensor([0, 0, 1, 1]))
    assert float(value) == pytest.approx((1.0 + 2.0) ** 2 + 0.0)


def lively(model: RewardModel) -> RewardModel:
    """A head that reads everything: it starts as the constant 0."""
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
def test_evidence_is_that_of_separate_sequences() -> None:
    model = lively(RewardModel(tiny_model(), shift=0.25, scale=2.0))
    prompt, answers = np.array([1, 5, 9]), [np.array([4, 2]), np.array([7]), np.array([3, 3, 8])]
    forest = to_torch(pack([group(prompt, answers), group(prompt[:2], answers[:1])]))
    evidence = []
    for start, answer in [(prompt, a) for a in answers] + [(prompt[:2], answers[0])]:
        ids = torch.from_numpy(np.concatenate([start, answer]))
        plain = tiny_model()
        plain.config._attn_implementation = "eager"
        hidden = plain.model(ids[None]).last_hidden_state[0]
        logps = plain(ids[None]).logits[0].log_softmax(-1)
        told = [logps[i - 1, ids[i]] for i in range(len(start), len(ids))]
        summary = [hidden[-1], hidden[len(start) - 1], hidden[len(start) :].mean(0)]
        counts = [sum(told) / len(answer), math.log(len(answer))]
        evidence.append(torch.cat([*summary, torch.tensor(counts)]))
    alone = torch.stack(evidence)
    torch.testing.assert_close(model.evidence(forest), alone, atol=1e-5, rtol=0)
    scores = (model.head(alone) - 0.25) * 2.0
    torch.testing.assert_close(model.scores(forest), scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(model.scores_and_features(forest)[0], scores, atol=1e-4, rtol=0)


def test_a_new_head_knows_nothing_and_its_evidence_is_standardised() -> None:
    head = RewardModel(tiny_model()).head
    evidence = torch.randn(200, head.mean.shape[0]) * 3 + 5
    head.standardise(evidence)
    assert float(head(evidence).detach().abs().max()) == 0.0
    known = (evidence - head.mean) / head.std
    torch.testing.assert_close(known.mean(0), torch.zeros_like(head.mean), atol=1e-4, rtol=0)
    torch.testing.assert_close(known.std(0), torch.ones_like(head.mean), atol=1e-4, rtol=0)


def test_features_are_the_states_before_each_answer_token() -> None:
    model = RewardModel(tiny_model())
    forest = to_torch(pack([group(np.array([1, 5]), [np.array([4, 2]), np.array([7])])]))
    scores, features = model.scores_and_features(forest)
    assert scores.shape == (2,)
    assert features.shape == (3, 16)
    # the first token of either answer is predicted by the prompt's last: the same state
    torch.testing.assert_close(features[0], features[2])


def test_pair_accuracy_counts_ties_half_and_resamples_prompts() -> None:
    pairs = scorecard.collect_pairs(
        [np.array([3.0, 1, 2]), np.array([0.0, 0.0])], [np.array([1, 2, 2]), np.array([1, 2])]
    )
    assert len(pairs) == 3  # the tie of the first ranking is no pair
    result = scorecard.accuracy(pairs)
    assert result["value"] == pytest.approx((1 + 1 + 0.5) / 3)
    # only two prompts: a resample holds them 2:0, 1:1 or 0:2, so the interval is their range
    assert (result["low"], result["high"]) == (0.5, 1.0)


def test_calibration_of_a_scorer_that_knows_its_odds() -> None:
    draw = np.random.default_rng(0)
    lead = draw.uniform(0, 4, size=20000)
    won = draw.uniform(size=20000) < expit(lead)
    zero = np.zeros_like(lead)
    pairs = scorecard.Pairs(np.where(won, lead, zero), np.where(won, zero, lead), np.arange(20000))
    assert scorecard.calibration(pairs)["ece"] < 0.01
    boasting = scorecard.Pairs(pairs.winner * 5, pairs.loser * 5, pairs.prompt)
    assert scorecard.calibration(boasting)["ece"] > 0.08


def test_the_way_to_the_ceiling() -> None:
    assert scorecard.way_to_ceiling(0.7, 0.75) == pytest.approx(0.8)
    assert math.isnan(scorecard.way_to_ceiling(0.7, 0.5))


@pytest.fixture
def stage(tmp_path):
    inputs = {
        "model": model_artefact(tmp_path / "model"),
        "feedback": feedback_artefact(tmp_path / "feedback", num=60),
    }
    return tmp_path, inputs


CONFIG = Config(epochs=3, rankings_per_update=8, lr=3e-3, precision="fp32", heldout_fraction=0.3)


@pytest.mark.parametrize("backbone", ["trained", "frozen"])
def test_the_stage_learns_to_rank_prompts_it_never_saw(stage, backbone) -> None:
    root, inputs = stage
    first = context(root / "a", **inputs)
    config = CONFIG.model_copy(update={"backbone": backbone})
    if backbone == "frozen":
        config = config.model_copy(update={"epochs": 40})
    notes = reward.run(first, config)
    # the annotator of this feedback makes no mistake
    assert notes["figures"]["noise_ceiling"] == 1.0
    started, ended = (load_model(path) for path in (inputs["model"].path, first.out))
    same = [
        torch.equal(a, b) for a, b in zip(started.parameters(), ended.parameters(), strict=True)
    ]
    assert all(same) == (backbone == "frozen")
    assert notes["figures"]["pair_accuracy"] > 0.95
    report = json.loads((first.out / "reward.json").read_text())
    assert report["heldout"]["num_prompts"] + report["train"]["num_prompts"] == 60
    model = load_reward_model(first.out)
    trained, _ = reward.split_by_prompt(
        reward.load_rankings(inputs["feedback"].path), heldout_fraction=0.3, seed=0
    )
    trees, _ = reward.encode_rankings(trained, reward.load_tokenizer(first.out), max_tokens=128)
    known = reward.read_evidence(model, trees, config)
    scores = np.concatenate(reward.score_evidence(model, known))
    normal = (scores - model.shift) * model.scale
    assert normal.mean() == pytest.approx(0, abs=1e-5)
    assert normal.std() == pytest.approx(1, abs=1e-5)

    second = context(root / "b", **inputs)
    reward.run(second, config)
    names = sorted(path.name for path in first.out.iterdir())
    assert same_bytes(first.out, second.out, names)


def test_feedback_without_any_order_is_refused(stage) -> None:
    root, inputs = stage
    path = inputs["feedback"].path / "rankings.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "ranks": [1, 1, 1]}) + "\n" for row in rows))
    with pytest.raises(DataError, match="all answers tie"):
        reward.run(context(root / "c", **inputs), CONFIG)


def test_a_plain_model_is_not_taken_for_a_reward_model(stage) -> None:
    _, inputs = stage
    with pytest.raises(ArtefactError, match="not a reward model"):
        load_reward_model(artefact(inputs["model"].path, "reward-model").path)


def test_document_forests_have_no_answers() -> None:
    model = RewardModel(tiny_model())
    assert model.raw_scores(to_torch(pack([document(np.array([1, 2, 3]))]))).shape == (0,)
