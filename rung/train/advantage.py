"""Advantages of sampled tokens: GAE for a critic, group means without one. Numpy, ragged and flat.

Tokens of all answers lie one after the other, as the targets of a forest do; `lengths` [A] says
how many tokens each answer has (N = sum of them). No padding, so no mask can be forgotten.
"""

import numpy as np


def spread(per_answer: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """A value per answer [A] given to each of its tokens [N]."""
    return np.repeat(per_answer, lengths)


def at_last_token(per_answer: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[N] zeros, but each answer's value [A] at its last token."""
    out = np.zeros(int(lengths.sum()))
    out[np.cumsum(lengths) - 1] = per_answer
    return out


def answer_sums(per_token: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Sum of a per-token value [N] over each answer: [A]."""
    return np.add.reduceat(per_token, np.cumsum(lengths) - lengths)


def gae(
    rewards: np.ndarray, values: np.ndarray, lengths: np.ndarray, *, gamma: float, lam: float
) -> tuple[np.ndarray, np.ndarray]:
    """(advantages, returns), both float64 [N] (Schulman et al. 2016, equations 11, 12, 16).

    delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lam A_{t+1}, return = A + V.
    The value after an answer's last token is 0: an answer ends, whether it stopped or was cut
    (a cut one is punished by the missing-stop penalty instead of being bootstrapped).
    """
    assert (lengths > 0).all()
    assert lengths.sum() == len(rewards) == len(values)
    advantages = np.zeros(len(rewards))
    ends = np.cumsum(lengths)
    # All answers step back from their last tokens together: the longest answer sets the time.
    running = np.zeros(len(lengths))
    next_value = np.zeros(len(lengths))
    for back in range(1, int(lengths.max()) + 1):
        live = np.flatnonzero(lengths >= back)
        at = ends[live] - back
        delta = rewards[at] + gamma * next_value[live] - values[at]
        running[live] = delta + gamma * lam * running[live]
        next_value[live] = values[at]
        advantages[at] = running[live]
    return advantages, advantages + values


def whiten(values: np.ndarray, *, eps: float = 1e-8) -> np.ndarray:
    """Mean 0 and standard deviation 1 over all that is given: call it on a whole rollout, once.

    Whitening microbatches one by one would make the gradient depend on how a rollout is cut.
    """
    return (values - values.mean()) / (values.std() + eps)


def group_advantages(
    rewards: np.ndarray, num_per_group: int, *, scale_by_std: bool
) -> tuple[np.ndarray, int]:
    """(advantages [A], groups in which all rewards are equal); A is groups x num_per_group.

    reward - group mean (DeepSeekMath 2024, section 4.1.2), divided by the group's standard
    deviation where asked; "Understanding R1-Zero-Like Training" (2025, section 3.1) shows that the
    division favours prompts that are nearly always right or wrong.
    """
    table = rewards.reshape(-1, num_per_group)
    centred = table - table.mean(axis=1, keepdims=True)
    flat = table.max(axis=1) - table.min(axis=1) < 1e-9
    centred[flat] = 0.0  # not the rounding error of the mean, blown up by the division
    if scale_by_std:
        centred = centred / (table.std(axis=1, keepdims=True, ddof=1) + 1e-4)
    return centred.reshape(-1), int(flat.sum())


def explained_variance(values: np.ndarray, returns: np.ndarray) -> float:
    """1 - Var(return - value) / Var(return): 1 perfect, 0 no better than a constant."""
    variance = float(np.var(returns))
    return 1.0 - float(np.var(returns - values)) / variance if variance > 0 else 0.0
