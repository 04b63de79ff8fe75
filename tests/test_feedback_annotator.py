"""The simulated annotator makes the errors it states, and knows how many."""

import math

import pytest
from scipy.stats import norm

from rung.feedback.annotator import (
    AnnotatorConfig,
    SimulatedAnnotator,
    expected_agreement,
    expected_ceiling,
    noise_ceiling,
    rank_with_ties,
    retest_agreement,
)
from rung.feedback.schema import Ranking

EXACT = AnnotatorConfig(noise_std=0, tie_margin=0, flag_error=0)


def judged(annotator: SimulatedAnnotator, key: str, utilities: list[float]) -> Ranking:
    judgement = annotator.judge(key, utilities, [()] * len(utilities))
    return Ranking(
        id=key,
        prompt=[{"role": "user", "content": key}],
        answers=[f"answer {i}" for i in range(len(utilities))],
        stopped=[True] * len(utilities),
        ranks=judgement.ranks,
        flags=judgement.flags,
        source={"utilities": utilities},
    )


def test_ranks_with_ties_by_hand():
    assert rank_with_ties([0.1, 0.9, 0.5], margin=0.0) == (3, 1, 2)
    assert rank_with_ties([0.5, 0.52, 0.1], margin=0.03) == (1, 1, 2)
    # 0.00 is within the margin of 0.02, but not of 0.04, the best of that rank: ties do not chain
    assert rank_with_ties([0.0, 0.02, 0.04], margin=0.03) == (2, 1, 1)
    assert rank_with_ties([0.5, 0.5], margin=0.0) == (1, 1)


def test_without_noise_it_ranks_by_utility():
    annotator = SimulatedAnnotator(EXACT, seed=0)
    judgement = annotator.judge("k", [0.2, 0.8, 0.5], [("unhelpful",), (), ("misleading",)])
    assert judgement.ranks == (3, 1, 2)
    assert judgement.flags == (("unhelpful",), (), ("misleading",))
    assert noise_ceiling([judged(annotator, "k", [0.2, 0.8, 0.5])]).value == 1.0


def test_a_judgement_is_a_function_of_seed_and_key():
    utilities = [0.5, 0.52, 0.48, 0.51]
    keys = [f"k{i}" for i in range(20)]

    def ranks(seed, prefix=""):
        annotator = SimulatedAnnotator(AnnotatorConfig(), seed=seed)
        return [judged(annotator, prefix + key, utilities).ranks for key in keys]

    assert ranks(0) == ranks(0)
    assert ranks(0) != ranks(1)
    assert ranks(0) != ranks(0, "again/")


def test_it_errs_as_often_as_stated():
    # difference 0.1, noise 0.1 on each side: right with chance Phi(0.1 / (0.1 sqrt 2)) = 0.7602
    config = AnnotatorConfig(noise_std=0.1, tie_margin=0, flag_error=0.2)
    annotator = SimulatedAnnotator(config, seed=0)
    num = 4000
    records = [judged(annotator, f"k{i}", [0.6, 0.5]) for i in range(num)]
    right = norm.cdf(1 / math.sqrt(2))
    assert right == pytest.approx(0.7602, abs=1e-4)
    assert noise_ceiling(records).value == pytest.approx(right, abs=4 * math.sqrt(0.25 / num))
    assert expected_agreement(0.1, noise_std=0.1, tie_margin=0) == pytest.approx(right)
    # two looks agree when both are right or both are wrong
    again = [judged(annotator, f"again/k{i}", [0.6, 0.5]) for i in range(num)]
    both = right**2 + (1 - right) ** 2
    assert retest_agreement(records, again).value == pytest.approx(both, abs=0.032)
    # nothing was wrong with the answers, so every flag is an error: 0.2 for each of two flags
    flags = sum(len(flags) for record in records for flags in record.flags) / (2 * num)
    assert flags == pytest.approx(2 * 0.2, abs=0.03)


@pytest.mark.parametrize("difference", [0.0, 0.02, 0.1, 0.4])
def test_the_ceiling_with_ties_is_as_predicted(difference):
    config = AnnotatorConfig(noise_std=0.08, tie_margin=0.05)
    annotator = SimulatedAnnotator(config, seed=1)
    records = [judged(annotator, f"k{i}", [0.5, 0.5 + difference]) for i in range(3000)]
    ceiling = noise_ceiling(records)
    assert ceiling.num_pairs < 3000  # some were ties
    assert ceiling.value == pytest.approx(expected_ceiling(records, config), abs=0.035)


def test_equal_utilities_count_half():
    records = [judged(SimulatedAnnotator(AnnotatorConfig(), seed=0), "k", [0.5, 0.5, 0.5])]
    assert noise_ceiling(records).value == 0.5


def test_people_have_no_known_ceiling():
    record = judged(SimulatedAnnotator(EXACT, seed=0), "k", [0.2, 0.8])
    human = Ranking(**{**vars(record), "source": {}})
    assert noise_ceiling([human]).num_pairs == 0
    assert expected_ceiling([human], EXACT) == 0.0


def test_far_tails_stay_finite():
    assert expected_agreement(0.0, noise_std=0.001, tie_margin=0.5) == 0.5
    assert expected_agreement(0.9, noise_std=0.001, tie_margin=0.0) == 1.0
