"""Intervals against scipy, simulation and arithmetic by hand."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from rung.evals.stats import (
    Estimate,
    bootstrap_mean,
    bootstrap_ratio,
    mcnemar,
    mean_interval,
    paired_difference,
    wilson,
    win_rate,
)


def test_mean_interval_is_the_normal_one() -> None:
    data = np.random.default_rng(0).exponential(size=400)
    ours = mean_interval(data)
    low, high = scipy_stats.norm.interval(0.95, loc=data.mean(), scale=scipy_stats.sem(data))
    assert (ours.value, ours.low, ours.high) == pytest.approx((data.mean(), low, high))
    assert ours.n == 400


def test_clustered_error_by_hand() -> None:
    # mean 2; deviations -1 -1 | 1 1: cluster sums -2 and 2; error = sqrt(4 + 4) / 4
    ours = mean_interval([1, 1, 3, 3], clusters=["a", "a", "b", "b"])
    assert ours.high - ours.value == pytest.approx(1.959964 * math.sqrt(8) / 4, rel=1e-6)


def test_one_item_has_no_known_error() -> None:
    assert mean_interval([3.0]).high == math.inf


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (7, 7), (3, 11), (180, 200), (1, 1)])
def test_wilson_is_scipys(hits: int, n: int) -> None:
    theirs = scipy_stats.binomtest(hits, n).proportion_ci(method="wilson")
    ours = wilson(hits, n)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 5), (9, 2), (1, 14), (40, 60)])
def test_mcnemar_is_the_exact_binomial(gained: int, lost: int) -> None:
    after = [True] * gained + [False] * lost + [True, False]
    before = [False] * gained + [True] * lost + [True, False]
    theirs = scipy_stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(after, before) == pytest.approx(theirs, abs=1e-12)


def test_bootstrap_mean_is_scipys_percentile() -> None:
    data = np.random.default_rng(1).gamma(2.0, size=150)
    theirs = scipy_stats.bootstrap(
        (data,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    ours = bootstrap_mean(data)
    width = ours.high - ours.low
    assert abs(ours.low - theirs.low) < 0.04 * width
    assert abs(ours.high - theirs.high) < 0.04 * width


def test_bootstrap_ratio_is_of_sums_not_a_mean_of_ratios() -> None:
    # 10 bits over 10 bytes and 10 bits over 90 bytes: 20 / 100, not (1 + 1/9) / 2
    assert bootstrap_ratio([10, 10], [10, 90]).value == pytest.approx(0.2)


def test_bootstrap_is_seeded() -> None:
    data = np.random.default_rng(3).normal(size=60)
    assert bootstrap_mean(data, seed=4) == bootstrap_mean(data, seed=4)
    assert bootstrap_mean(data, seed=4) != bootstrap_mean(data, seed=5)


def test_clusters_widen_the_interval_by_their_size() -> None:
    # 25 copies of each of 16 values: 400 rows, 16 observations, so sqrt(25) = 5 times as wide
    once = np.random.default_rng(5).normal(size=16)
    rows, owner = np.repeat(once, 25), np.repeat(np.arange(16), 25)
    naive, fair = bootstrap_mean(rows), bootstrap_mean(rows, clusters=list(owner))
    assert (fair.high - fair.low) / (naive.high - naive.low) == pytest.approx(5, rel=0.1)
    assert fair.n == 400


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(6)
    covered = 0
    for trial in range(200):
        data = generator.normal(1.0, 1.0, size=80)
        interval = bootstrap_mean(data, resamples=400, seed=trial)
        covered += interval.low <= 1.0 <= interval.high
    assert 180 <= covered <= 199


def test_win_rate_counts_ties_half() -> None:
    # win, loss, tie, tie within the margin: (1 + 0 + .5 + .5) / 4
    ours = win_rate([1.0, 0.0, 0.5, 0.52], [0.0, 1.0, 0.5, 0.5], tie_margin=0.05)
    assert ours.value == 0.5
    assert win_rate([1.0, 0.0, 0.5, 0.52], [0.0, 1.0, 0.5, 0.5]).value == pytest.approx(2.5 / 4)


def test_swapping_the_sides_mirrors_a_win_rate() -> None:
    generator = np.random.default_rng(7)
    a, b = generator.integers(0, 3, 90) / 2, generator.integers(0, 3, 90) / 2
    ahead, behind = win_rate(a, b), win_rate(b, a)
    assert ahead.value == pytest.approx(1 - behind.value)
    assert ahead.low == pytest.approx(1 - behind.high, abs=0.01)


def test_winning_every_item_is_not_certainty() -> None:
    assert win_rate([1.0] * 5, [0.0] * 5).low == pytest.approx(wilson(5, 5).low)
    assert win_rate([0.0] * 5, [1.0] * 5).high == pytest.approx(wilson(0, 5).high)
    pairs = win_rate([1.0] * 6, [0.0] * 6, clusters=[1, 1, 1, 2, 2, 2])
    assert pairs.low == pytest.approx(wilson(2, 2).low)


def test_paired_difference_uses_the_pairing() -> None:
    # the items differ by far more than the models do: unpaired intervals would hide it
    before = np.random.default_rng(8).normal(0, 10, size=100)
    ours = paired_difference(before + 0.5, before)
    assert ours.value == pytest.approx(0.5)
    assert ours.low == pytest.approx(0.5)


def test_json_is_rounded() -> None:
    assert Estimate(1 / 3, 0.0, 1.0, 9).to_json() == {
        "value": 0.333333,
        "low": 0.0,
        "high": 1.0,
        "n": 9,
    }
