"""Losses of a margin: by hand, finite far out, and what mending does to wrong labels."""

import math

import pytest
import torch

from rung.train.margins import hinge, sigmoid, smoothed, unbiased

PLAIN, SWAPPED = math.log1p(math.exp(-0.4)), math.log1p(math.exp(0.4))
AT = torch.tensor(0.4)


def test_by_hand() -> None:
    # -log sigmoid(0.4) = ln(1 + e^-0.4)
    assert float(sigmoid(AT)) == pytest.approx(PLAIN)
    assert float(sigmoid(torch.tensor(0.0))) == pytest.approx(math.log(2))
    assert hinge(torch.tensor([0.4, 1.5, -1.0])).tolist() == pytest.approx([0.6, 0.0, 2.0])


def test_smoothing_and_its_unbiased_sibling_by_hand() -> None:
    assert float(smoothed(sigmoid, AT, 0.1)) == pytest.approx(0.9 * PLAIN + 0.1 * SWAPPED)
    # (0.9 x 0.513 - 0.1 x 0.913) / 0.8
    robust = (0.9 * PLAIN - 0.1 * SWAPPED) / 0.8
    assert float(unbiased(sigmoid, AT, 0.1)) == pytest.approx(robust)
    assert float(unbiased(hinge, AT, 0.1)) == pytest.approx((0.9 * 0.6 - 0.1 * 1.4) / 0.8)


@pytest.mark.parametrize("mend", [smoothed, unbiased])
@pytest.mark.parametrize("loss", [sigmoid, hinge])
def test_no_wrong_labels_change_nothing(mend, loss) -> None:
    margins = torch.tensor([-3.0, -0.1, 0.0, 2.0])
    assert torch.equal(mend(loss, margins, 0.0), loss(margins))


@pytest.mark.parametrize("loss", [sigmoid, hinge])
def test_unbiased_over_flipped_labels_is_the_loss_of_the_true_ones(loss) -> None:
    """Of labels that are flipped with 0.3, the expectation of the estimate is the true loss."""
    margins, wrong = torch.tensor([-2.0, 0.3, 1.7], dtype=torch.float64), 0.3
    expected = (1 - wrong) * unbiased(loss, margins, wrong) + wrong * unbiased(
        loss, -margins, wrong
    )
    torch.testing.assert_close(expected, loss(margins))


def test_a_smoothed_loss_has_had_enough_at_the_log_odds_of_a_right_label() -> None:
    # d/dm [0.8 l(m) + 0.2 l(-m)] = sigmoid(m) - 0.8 = 0 at ln 4
    margin = torch.tensor(math.log(4), requires_grad=True)
    smoothed(sigmoid, margin, 0.2).backward()
    assert float(margin.grad) == pytest.approx(0, abs=1e-6)


def test_finite_far_out() -> None:
    assert sigmoid(torch.tensor([-2000.0, 2000.0])).tolist() == [2000.0, 0.0]
    assert smoothed(sigmoid, torch.tensor([-2000.0, 2000.0]), 0.0).tolist() == [2000.0, 0.0]
