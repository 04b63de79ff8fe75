"""Muon in batches against torch's Muon one by one, and against the singular vectors."""

import torch
from torch import nn

from rung.model.precision import pick_dtype
from rung.train.muon import Muon, orthogonalise

SHAPES = [(16, 16), (48, 16), (16, 48), (16, 16), (48, 16)]


def weights() -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=draw)) for shape in SHAPES]


def steps(params: list[nn.Parameter], optimizer: torch.optim.Optimizer, *, num: int) -> None:
    draw = torch.Generator().manual_seed(1)
    for _ in range(num):
        for p in params:
            p.grad = torch.randn(p.shape, generator=draw)
        optimizer.step()


def test_steps_equal_those_of_torch() -> None:
    ours, theirs = weights(), weights()
    settings = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    steps(ours, Muon(ours, **settings), num=6)
    steps(theirs, torch.optim.Muon(theirs, **settings), num=6)
    # theirs is bf16 always; ours fp32 where the processor has no bf16 products
    atol = 1e-3 if pick_dtype("auto") == torch.bfloat16 else 1e-2
    for a, b, before in zip(ours, theirs, weights(), strict=True):
        assert (b - before).abs().max() > 0.01
        torch.testing.assert_close(a, b, atol=atol, rtol=0)


def test_directions_are_kept_and_singular_values_come_near_one() -> None:
    stack = torch.randn(3, 12, 30, generator=torch.Generator().manual_seed(2))
    out = orthogonalise(stack)
    for before, after in zip(stack, out, strict=True):
        values = torch.linalg.svdvals(after)
        assert 0.6 < values.min() <= values.max() < 1.3
        u, _, vt = torch.linalg.svd(before, full_matrices=False)
        turned = u.T @ after @ vt.T  # diagonal where the singular vectors are the same
        off = turned - torch.diag(turned.diagonal())
        assert off.abs().max() < 0.05


def test_a_parameter_without_a_gradient_stays() -> None:
    params = weights()
    before = params[1].detach().clone()
    for p in params[:1]:
        p.grad = torch.ones_like(p)
    Muon(params, lr=0.1, weight_decay=0.1).step()
    assert torch.equal(params[1], before)
    assert not torch.equal(params[0], weights()[0])
