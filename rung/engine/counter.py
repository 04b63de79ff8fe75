"""Random numbers as a function of where they are used, not of what was drawn before.

A token's number depends on (seed, key of the prompt, sample, token index) alone, so a sample does
not change with its neighbours in the batch, nor with the order in which rows finish.
"""

import numpy as np

MASK = 2**64 - 1
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def uniform(
    *, seed: int | np.ndarray, keys: np.ndarray, samples: np.ndarray, tokens: np.ndarray
) -> np.ndarray:
    """float64 in [0, 1), shaped as the arrays broadcast; multiples of 2**-40.

    seed: any whole number, or uint64 of each place.

    The coarse grid keeps number x total below the total in float64, which an inverse CDF needs.
    """
    if isinstance(seed, int):
        seed = np.array([seed & MASK], dtype=np.uint64)
    state = _mix(seed)
    for part in (keys, samples, tokens):
        # Signed ids wrap to unsigned ones; distinct inputs stay distinct.
        state = _mix(state ^ np.asarray(part).astype(np.int64).view(np.uint64))
    return (state >> np.uint64(24)).astype(np.float64) * 2.0**-40


def _mix(value: np.ndarray) -> np.ndarray:
    """One step of SplitMix64 (Steele, Lea, Flood 2014, figure 17): a bijection of 64 bits."""
    value = value + _GAMMA
    value = (value ^ (value >> np.uint64(30))) * _MIX_1
    value = (value ^ (value >> np.uint64(27))) * _MIX_2
    return value ^ (value >> np.uint64(31))
