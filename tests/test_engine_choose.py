"""Sampling by inverse CDF: the right frequencies, and nothing that truncation removed."""

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rung.engine.choose import choose
from rung.engine.counter import uniform
from rung.engine.sampling import Sampling

LOGITS = torch.tensor([1.0, -2.0, 0.5, 3.0, float("-inf"), 2.9, -1.0])


def draw(sampling: Sampling, count: int = 20000) -> np.ndarray:
    """How often each token comes out over an even grid of uniform numbers: no noise."""
    grid = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    ids = choose(LOGITS.expand(count, -1), grid, [sampling] * count)
    return np.bincount(ids.numpy(), minlength=len(LOGITS)) / count


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [
        (0, 1.0, 0.0),
        (3, 1.0, 0.0),
        (0, 0.7, 0.0),
        (4, 0.8, 0.0),
        (2, 0.5, 0.0),
        (100, 1.0, 0.0),
        (0, 1.0, 0.1),
        (0, 0.9, 0.3),
    ],
)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_equal_the_truncated_softmax(
    top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    scores = LOGITS[None] / temperature
    if top_k:
        scores = TopKLogitsWarper(top_k=top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p=top_p)(None, scores)
    if min_p:
        scores = MinPLogitsWarper(min_p=min_p)(None, scores)
    expected = torch.softmax(scores, -1)[0].numpy()
    got = draw(Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p))
    np.testing.assert_allclose(got, expected, atol=1e-4)  # the grid has steps of 5e-5
    assert not got[expected == 0].any()


def test_the_ends_of_the_interval_are_real_tokens() -> None:
    """0 must not give a token of probability 0, the largest number must not fall off the end."""
    logits = torch.tensor([[float("-inf"), 0.0, 0.0, float("-inf")]])
    for number, token in ((0.0, 1), (0.5, 2), (1 - 2.0**-40, 2)):
        assert (
            choose(logits, torch.tensor([number], dtype=torch.float64), [Sampling()]).item()
            == token
        )


def test_temperature_0_is_greedy() -> None:
    assert (
        choose(
            LOGITS[None], torch.tensor([0.9], dtype=torch.float64), [Sampling(temperature=0)]
        ).item()
        == 3
    )


def test_a_row_does_not_depend_on_the_others() -> None:
    """Rows of all kinds in one batch, over more tokens than are candidates, many of them tied."""
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(8, 700, generator=generator)).bfloat16()
    numbers = torch.rand(8, generator=generator).double()
    kinds = [Sampling(), Sampling(top_k=5), Sampling(top_p=0.6), Sampling(min_p=0.1)]
    kinds += [Sampling(temperature=0), Sampling(temperature=9, top_p=0.99)]
    kinds += [Sampling(top_k=400, top_p=0.9, temperature=3), Sampling(temperature=2, min_p=1e-4)]
    together = choose(logits, numbers, kinds)
    alone = [choose(logits[i : i + 1], numbers[i : i + 1], [kinds[i]]) for i in range(8)]
    assert together.tolist() == torch.cat(alone).tolist()


@pytest.mark.parametrize("vocab", [7, 256, 257, 1000])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=5, top_p=0.95)])
def test_choices_are_those_of_one_long_cdf(vocab: int, sampling: Sampling) -> None:
    """Runs of tokens, and candidates that do not suffice, change nothing but rounding."""
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(vocab)) * 3
    count = 4001
    grid = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    got = choose(logits.expand(count, -1), grid, [sampling] * count)
    probs = torch.softmax(logits[0].double() / sampling.temperature, -1)
    if sampling.top_p < 1:
        probs, order = torch.sort(probs, descending=True)
        probs[probs.cumsum(0) - probs >= sampling.top_p] = 0
    else:
        order = torch.arange(vocab)
    expected = order[torch.searchsorted(probs.cumsum(0), grid * probs.sum(), right=True)]
    assert (got != expected).sum() <= 2  # at a border of two tokens, in float32


def test_uniform_is_uniform_along_every_axis() -> None:
    many = np.arange(20000)
    axes = ("keys", "samples", "tokens")
    for axis in axes:
        parts = {name: many if name == axis else np.array([3]) for name in axes}
        numbers = uniform(seed=7, **parts)
        assert scipy.stats.kstest(numbers, "uniform").pvalue > 0.001
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.03
        assert len(np.unique(numbers)) == len(many)


def test_uniform_tells_its_arguments_apart() -> None:
    at = [np.array([i]) for i in range(3)]
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    numbers = {
        uniform(seed=seed, keys=at[k], samples=at[s], tokens=at[t]).item()
        for k, s, t in orders
        for seed in (0, 1, -1)
    }
    assert len(numbers) == 18


@settings(max_examples=50)
@given(st.integers(-(2**63), 2**64 - 1), st.integers(-(2**63), 2**63 - 1))
def test_uniform_takes_any_seed_and_key(seed: int, key: int) -> None:
    zero = np.array([0])
    value = uniform(seed=seed, keys=np.array([key]), samples=zero, tokens=zero).item()
    assert 0 <= value < 1
    assert value * 2**40 == int(value * 2**40)
