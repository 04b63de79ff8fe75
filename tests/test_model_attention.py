"""Forest attention against each path through the trees alone, by transformers' own eager code."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from rung.model.attention import build_layout, register, to_torch
from rung.model.forward import target_logps, weighted_nll
from rung.tokens.forest import Segment, Tree, document, group, pack

VOCAB = 96
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "llama": LlamaConfig(**SHAPE),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8),
    "gpt2": GPT2Config(
        vocab_size=VOCAB,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=512,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "mistral-sliding": MistralConfig(**SHAPE, sliding_window=7),
    "gemma2-softcap-sliding": Gemma2Config(**SHAPE, head_dim=8, sliding_window=7),
}


def _model(config, attention):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    config = deepcopy(config)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).train()


def _ids(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.integers(3, VOCAB, n)


def _trees() -> list[Tree]:
    """Documents, a pair, a group with a one-token answer, and a chain of three generations."""
    rng = np.random.default_rng(0)
    chain = group(_ids(rng, 6), [_ids(rng, 5)])
    grandchild = Segment(_ids(rng, 4).astype(np.int32), np.ones(4, np.float32), parent=1)
    return [
        document(_ids(rng, 200)),
        document(_ids(rng, 5)),
        group(_ids(rng, 20), [_ids(rng, 4), _ids(rng, 30)]),
        group(_ids(rng, 3), [_ids(rng, 9), _ids(rng, 150), _ids(rng, 1)]),
        (*chain, grandchild),
        document(_ids(rng, 131)),
    ]


def _paths(tree: Tree) -> list[tuple[np.ndarray, int]]:
    """(ids from the root down, number of them that are this segment's targets) per segment."""
    paths = []
    for segment in tree:
        ids, up = [segment.ids], segment.parent
        while up >= 0:
            ids.insert(0, tree[up].ids)
            up = tree[up].parent
        trained = len(segment.ids) - (segment.parent < 0)
        if segment.weights.any():
            paths.append((np.concatenate(ids), trained))
    return paths


def _separate(model: torch.nn.Module, trees: list[Tree]) -> torch.Tensor:
    """Log-probabilities of the trained tokens, one forward a path, in the order of a forest."""
    parts = []
    for tree in trees:
        for path, trained in _paths(tree):
            ids = torch.from_numpy(path.astype(np.int64))[None]
            logp = torch.log_softmax(model(ids).logits[0].float(), -1)
            parts.append(logp[:-1].gather(1, ids[0, 1:, None])[-trained:, 0])
    return torch.cat(parts)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_separate_forward_and_backward(family: str) -> None:
    packed, plain = _model(FAMILIES[family], register()), _model(FAMILIES[family], "eager")
    trees = _trees()
    forest = to_torch(pack(trees))
    logps, _ = target_logps(packed, forest)
    expected = _separate(plain, trees)
    torch.testing.assert_close(logps, expected, atol=1e-5, rtol=0)

    direction = torch.randn(len(logps), generator=torch.Generator().manual_seed(1))
    (logps * direction).sum().backward()
    (expected * direction).sum().backward()
    for (name, a), (_, b) in zip(packed.named_parameters(), plain.named_parameters(), strict=True):
        scale = float(b.grad.abs().max())
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5 * max(1, scale), rtol=0, msg=name)


def test_nothing_leaks_between_trees() -> None:
    model = _model(FAMILIES["llama"], register())
    trees = _trees()
    before, _ = target_logps(model, to_torch(pack(trees)))
    other = [document(np.full(40, 7)), *trees[1:]]
    after, _ = target_logps(model, to_torch(pack(other)))
    skip_before, skip_after = len(trees[0][0].ids) - 1, 39
    torch.testing.assert_close(before[skip_before:], after[skip_after:], atol=1e-5, rtol=0)


def test_fused_loss_equals_weighted_logps() -> None:
    model = _model(FAMILIES["gemma2-softcap-sliding"], register())
    rng = np.random.default_rng(3)
    trees = [document(_ids(rng, n), rng.random(n).astype(np.float32)) for n in (40, 7, 90)]
    forest = to_torch(pack(trees))
    loss = weighted_nll(model, forest)
    loss.backward()
    fused = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    logps, _ = target_logps(model, forest)
    expected = -(logps * forest.weight).sum()
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-3, rtol=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(fused[name], parameter.grad, atol=2e-4, rtol=1e-4, msg=name)


def test_entropy_is_that_of_the_softmax() -> None:
    model = _model(FAMILIES["llama"], register())
    forest = to_torch(pack([document(np.arange(3, 20))]))
    _, entropy = target_logps(model, forest)
    model.set_attn_implementation("sdpa")
    logits = model(forest.ids[None]).logits[0, :-1]
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(entropy, expected, atol=1e-5, rtol=0)


def test_bf16_stays_near_fp32() -> None:
    model = _model(FAMILIES["llama"], register())
    forest = to_torch(pack(_trees()))
    exact, _ = target_logps(model, forest)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, _ = target_logps(model, forest)
    assert float((exact - rough).detach().abs().mean()) < 0.02  # bf16 keeps 8 bits of mantissa


def test_layout_pads_at_most_half() -> None:
    rng = np.random.default_rng(5)
    lengths = np.clip(rng.lognormal(4.5, 1.0, 120), 2, 512).astype(int)
    forest = pack([document(np.ones(n, dtype=np.int32)) for n in lengths])
    layout = build_layout(forest)
    padded = sum(g.rows * g.length for g in layout.groups)
    assert forest.num_tokens <= padded <= 1.5 * forest.num_tokens
    assert sorted(layout.inverse.tolist()) == sorted(set(layout.inverse.tolist()))


def test_gradients_match_finite_differences_with_ancestors() -> None:
    register()
    rng = np.random.default_rng(0)
    forest = to_torch(pack([group(_ids(rng, 3), [_ids(rng, 2), _ids(rng, 4)])]))
    shape = (2, forest.host.num_tokens, 4)
    q, k, v = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3))

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.ops.rung.forest_attention(q * 0.5, k, v, forest.handle, 0, 0.0)

    assert torch.autograd.gradcheck(attention, (q, k, v), eps=1e-6, atol=1e-6)
