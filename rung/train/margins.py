"""Losses of a margin: how far the chosen answer leads the rejected one. Pure, any shape.

Two of them say how wrong a lead is (sigmoid, hinge); the other two take one of these and mend it
for labels of which a share e is wrong. They compose: unbiased(hinge, margins, 0.1).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

MarginLoss = Callable[[Tensor], Tensor]


def sigmoid(margins: Tensor) -> Tensor:
    """-log sigmoid(m), the negative log-likelihood of Bradley-Terry: ln 2 at 0."""
    return -logsigmoid(margins)


def hinge(margins: Tensor) -> Tensor:
    """max(0, 1 - m) (Zhao et al. 2023, SLiC-HF, equation 1): a lead of 1 is enough."""
    return torch.relu(1 - margins)


def smoothed(loss: MarginLoss, margins: Tensor, wrong: float) -> Tensor:
    """(1 - e) l(m) + e l(-m): the label is true with 1 - e (Mitchell 2023, cDPO, equation 3)."""
    return (1 - wrong) * loss(margins) + wrong * loss(-margins)


def unbiased(loss: MarginLoss, margins: Tensor, wrong: float) -> Tensor:
    """((1 - e) l(m) - e l(-m)) / (1 - 2 e) (Chowdhury et al. 2024, equation 11).

    In expectation over labels that are flipped with e it is the loss of the true ones.
    """
    return ((1 - wrong) * loss(margins) - wrong * loss(-margins)) / (1 - 2 * wrong)
