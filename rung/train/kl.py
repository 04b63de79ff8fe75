"""Kullback-Leibler estimates per token, and the coefficient that steers them.

k1, k2, k3 after J. Schulman, "Approximating KL Divergence" (2020): samples come from the policy p,
r = q(x) / p(x), and E[-log r] = E[(r - 1) - log r] = KL(p, q).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def k1(logp: Tensor, reference: Tensor) -> Tensor:
    """-log r: unbiased, may be negative on a sample; a negative mean says sampling is wrong."""
    return logp - reference


def k3(logp: Tensor, reference: Tensor) -> Tensor:
    """(r - 1) - log r: unbiased, never negative, of lower variance than k1."""
    log_ratio = reference - logp
    return torch.expm1(log_ratio) - log_ratio


@dataclass
class AdaptiveKL:
    """A proportional controller of the KL coefficient (Ziegler et al. 2019, section 2.2).

    error = clip(KL / target - 1, -0.2, 0.2), coefficient *= 1 + gain * error.
    target: nats per answer. A gain of 0 keeps the coefficient.
    """

    coefficient: float
    target: float
    gain: float = 0.1

    def update(self, kl: float) -> None:
        """One step of the controller for the KL (nats per answer) of the last rollout."""
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        self.coefficient *= 1.0 + self.gain * error
