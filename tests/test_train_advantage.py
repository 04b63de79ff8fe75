"""Advantages against hand arithmetic, a padded double loop, and properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rung.train.advantage import (
    answer_sums,
    at_last_token,
    explained_variance,
    gae,
    group_advantages,
    spread,
    whiten,
)


def test_gae_by_hand() -> None:
    # One answer, gamma 0.9, lambda 0.8: rewards 0 0 1, values 0.5 0.4 0.2.
    # deltas: 0.9*0.4-0.5 = -0.14 ; 0.9*0.2-0.4 = -0.22 ; 1-0.2 = 0.8
    # A3 = 0.8 ; A2 = -0.22+0.72*0.8 = 0.356 ; A1 = -0.14+0.72*0.356 = 0.11632
    advantages, returns = gae(
        np.array([0.0, 0, 1]), np.array([0.5, 0.4, 0.2]), np.array([3]), gamma=0.9, lam=0.8
    )
    np.testing.assert_allclose(advantages, [0.11632, 0.356, 0.8], atol=1e-12)
    np.testing.assert_allclose(returns, [0.61632, 0.756, 1.0], atol=1e-12)


def _gae_by_definition(rewards, values, gamma, lam):
    """A_t = sum_l (gamma lam)^l delta_{t+l}: the sum itself, not the recursion."""
    n = len(rewards)
    after = np.append(values[1:], 0.0)
    delta = rewards + gamma * after - values
    return np.array(
        [sum((gamma * lam) ** l * delta[t + l] for l in range(n - t)) for t in range(n)]
    )


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=6),
    st.floats(0.5, 1.0),
    st.floats(0.0, 1.0),
    st.integers(0, 1000),
)
def test_ragged_answers_do_not_leak_into_each_other(lengths, gamma, lam, seed) -> None:
    draw = np.random.default_rng(seed)
    n = sum(lengths)
    rewards, values = draw.normal(size=n), draw.normal(size=n)
    advantages, returns = gae(rewards, values, np.array(lengths), gamma=gamma, lam=lam)
    at = 0
    for length in lengths:
        part = slice(at, at + length)
        expected = _gae_by_definition(rewards[part], values[part], gamma, lam)
        np.testing.assert_allclose(advantages[part], expected, atol=1e-9)
        at += length
    np.testing.assert_allclose(returns, advantages + values)


def test_lambda_one_gives_monte_carlo_returns() -> None:
    rewards, values = np.array([1.0, 2, 3, 5]), np.array([9.0, -4, 2, 1])
    _, returns = gae(rewards, values, np.array([3, 1]), gamma=1.0, lam=1.0)
    np.testing.assert_allclose(returns, [6, 5, 3, 5])


def test_places_of_flat_arrays() -> None:
    lengths = np.array([2, 1, 3])
    np.testing.assert_array_equal(spread(np.array([5.0, 6, 7]), lengths), [5, 5, 6, 7, 7, 7])
    np.testing.assert_array_equal(at_last_token(np.array([5.0, 6, 7]), lengths), [0, 5, 6, 0, 0, 7])
    np.testing.assert_array_equal(answer_sums(np.arange(6.0), lengths), [1, 2, 12])


def test_whitened_over_the_whole_not_by_part() -> None:
    values = np.array([1.0, 2, 3, 10])
    white = whiten(values)
    assert white.mean() == pytest.approx(0, abs=1e-12)
    assert white.std() == pytest.approx(1, abs=1e-6)
    assert not np.allclose(white, np.concatenate([whiten(values[:2]), whiten(values[2:])]))


def test_group_mean_is_the_baseline_and_flat_groups_are_counted() -> None:
    # groups (1, 3) and (0.1 x 2): means 2 and 0.1
    advantages, flat = group_advantages(np.array([1.0, 3, 0.1, 0.1]), 2, scale_by_std=False)
    np.testing.assert_array_equal(advantages, [-1, 1, 0, 0])
    assert flat == 1
    # std with n - 1 of (1, 3) is sqrt(2)
    scaled, _ = group_advantages(np.array([1.0, 3, 0.1, 0.1]), 2, scale_by_std=True)
    np.testing.assert_allclose(scaled, [-(2**-0.5), 2**-0.5, 0, 0], atol=1e-4)


def test_a_flat_group_of_inexact_numbers_stays_exactly_zero() -> None:
    rewards = np.full(3, 0.1)
    advantages, flat = group_advantages(rewards, 3, scale_by_std=True)
    assert flat == 1
    np.testing.assert_array_equal(advantages, 0.0)


def test_explained_variance() -> None:
    returns = np.array([0.0, 1, 2])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(np.full(3, 7.0), returns) == pytest.approx(0.0)
    assert explained_variance(-returns, returns) == pytest.approx(-3.0)  # 1 - Var(2R) / Var(R)
    assert explained_variance(returns, np.ones(3)) == 0.0
