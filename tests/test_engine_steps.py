"""What a step does in C: against the same sums in float64, and as the model's own code does it."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_engine_generate import greedy_uncached, ragged, tiny
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from rung.engine import native, steps
from rung.engine.choose import _invert, choose
from rung.engine.fused import FusedParts
from rung.engine.generate import Ready, generate
from rung.engine.layers import FusedLayers
from rung.engine.sampling import Sampling
from rung.errors import TrainingError

pytestmark = pytest.mark.skipif(bool(native.why_not()), reason=native.why_not() or "compiled")
WIDE, HALF = torch.float32, torch.bfloat16
ROUNDING = {WIDE: 1e-5, HALF: 1e-2}  # bf16 keeps 8 bits


def case(heads: int, kv_heads: int, width: int, *, kind: Any, query_kind: Any) -> dict[str, Any]:
    """Six rows of lengths 1 to 67 in slots of 96; heads lie apart in memory, as in a model."""
    torch.manual_seed(0)
    at = torch.tensor([0, 3, 15, 31, 40, 66])
    both = torch.randn(6, 1, heads + 2 * kv_heads, width).transpose(1, 2)
    query, key, value = both.split([heads, kv_heads, kv_heads], dim=1)
    return {
        "query": query.to(query_kind),
        "key": key.to(query_kind),
        "value": value.to(kind),
        "keys": torch.randn(8, kv_heads, 96, width).to(kind),
        "values": torch.randn(8, kv_heads, 96, width).to(kind),
        "at": at,
    }


def expected(case: dict[str, Any], *, scale: float, window: int, softcap: float) -> torch.Tensor:
    """Attention by its definition, in float64, [N, 1, H, D]."""
    keys, values, at = case["keys"].clone(), case["values"].clone(), case["at"]
    keys[torch.arange(6), :, at] = case["key"][:, :, 0].to(keys.dtype)
    values[torch.arange(6), :, at] = case["value"][:, :, 0]
    shared = case["query"].shape[1] // keys.shape[1]
    keys, values = (x[:6].double().repeat_interleave(shared, 1) for x in (keys, values))
    scores = case["query"].double() @ keys.transpose(2, 3) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    place = torch.arange(96)
    seen = place <= at[:, None]
    if window:
        seen &= place > at[:, None] - window
    scores = scores.masked_fill(~seen[:, None, None], -torch.inf)
    return (torch.softmax(scores, -1) @ values).transpose(1, 2)


@pytest.mark.parametrize("kind", [WIDE, HALF])
@pytest.mark.parametrize("query_kind", [WIDE, HALF])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "window", "softcap"),
    [(4, 4, 64, 0, 0.0), (9, 3, 64, 0, 0.0), (2, 1, 16, 5, 0.0), (4, 2, 80, 0, 3.0),
     (4, 1, 128, 17, 0.0)],
)  # fmt: skip
def test_attention_of_a_step(
    kind: Any, query_kind: Any, heads: int, kv_heads: int, width: int, window: int, softcap: float
) -> None:
    given = case(heads, kv_heads, width, kind=kind, query_kind=query_kind)
    how: dict[str, Any] = {"scale": 0.3, "window": window, "softcap": softcap}
    wanted = expected(given, **how)
    out = steps.attend(**given, **how)
    assert out.dtype == kind
    torch.testing.assert_close(out.double(), wanted, atol=ROUNDING[kind], rtol=ROUNDING[kind])
    written = given["keys"][torch.arange(6), :, given["at"]]
    assert torch.equal(written, given["key"][:, :, 0].to(kind)), "the new keys are in their slots"


def test_a_row_gives_the_same_to_the_bit_whatever_is_beside_it() -> None:
    given = case(9, 3, 64, kind=HALF, query_kind=WIDE)
    together = steps.attend(**given, scale=0.1, window=0, softcap=0.0)
    for row in range(6):
        one = {name: x[row : row + 1] for name, x in given.items()}
        alone = steps.attend(**one, scale=0.1, window=0, softcap=0.0)
        assert torch.equal(alone[0], together[row])


def test_a_nan_in_a_key_is_not_lost() -> None:
    given = case(2, 1, 16, kind=HALF, query_kind=HALF)
    given["keys"][3, 0, 10, 4] = torch.nan
    out = steps.attend(**given, scale=0.1, window=0, softcap=0.0)
    assert torch.isnan(out).flatten(1).all(1).tolist() == [False] * 3 + [True] + [False] * 2


def test_huge_scores_do_not_overflow() -> None:
    given = case(2, 1, 16, kind=WIDE, query_kind=WIDE)
    how: dict[str, Any] = {"scale": 1e4, "window": 0, "softcap": 0.0}
    wanted = expected(given, **how)
    torch.testing.assert_close(steps.attend(**given, **how).double(), wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", [WIDE, HALF])
@pytest.mark.parametrize("weight_kind", [WIDE, HALF])
def test_rms_norm_is_the_familys(kind: Any, weight_kind: Any) -> None:
    norm = LlamaRMSNorm(48, eps=1e-3)
    norm.weight.data = torch.randn(48).to(weight_kind)
    rows = torch.randn(5, 2, 48).to(kind)
    wanted = norm(rows).detach()
    ours = steps.rms_norm(rows, norm.weight, eps=1e-3, offset=0.0, kind=wanted.dtype)
    torch.testing.assert_close(ours, wanted, atol=ROUNDING[kind], rtol=ROUNDING[kind])


@pytest.mark.parametrize("kind", [WIDE, HALF])
@pytest.mark.parametrize("table_kind", [WIDE, HALF])
@pytest.mark.parametrize("rows", [1, 3])
def test_rotary_positions_are_the_familys(kind: Any, table_kind: Any, rows: int) -> None:
    x = torch.randn(3, 5, 7, 64).transpose(1, 2).to(kind)  # [N, H, T, D], heads beside each other
    angles = torch.randn(rows, 5, 64)
    cos, sin = angles.cos().to(table_kind), angles.sin().to(table_kind)
    wanted, _ = apply_rotary_pos_emb(x, x, cos, sin)
    ours = steps.turn(x, cos, sin)
    torch.testing.assert_close(ours, wanted, atol=4 * ROUNDING[kind], rtol=ROUNDING[kind])


@pytest.mark.parametrize("kind", [WIDE, HALF])
@pytest.mark.parametrize("vocab", [5, 97, 256, 1000, 5003])
def test_draws_are_those_of_torch(kind: Any, vocab: int) -> None:
    torch.manual_seed(1)
    logits = (4 * torch.randn(2000, vocab + 3)).to(kind)[:, :vocab]  # rows lie apart
    logits[:, ::7] = -torch.inf
    uniforms = torch.rand(2000, dtype=torch.float64)
    heats = torch.empty(2000).uniform_(0.3, 3)
    ours = steps.draw(logits, uniforms, heats)
    theirs = _invert(torch.softmax(logits.float() / heats[:, None], -1), uniforms)
    # a number that falls on the border of two tokens, by rounding
    assert (ours != theirs).float().mean() < 2e-3
    assert not (ours % 7 == 0).any(), "what has no probability is never drawn"


def test_a_draw_from_damaged_logits_is_an_error() -> None:
    for damage in (torch.nan, torch.inf):
        logits = torch.zeros(2, 300)
        logits[1, 270] = damage
        with pytest.raises(TrainingError, match="not finite"):
            choose(logits, torch.zeros(2, dtype=torch.float64), [Sampling()] * 2)
    nothing = torch.full((1, 20), -torch.inf)
    assert steps.draw(nothing, torch.zeros(1).double(), torch.ones(1)).item() == -1


@pytest.mark.parametrize(
    ("family", "num_norms", "rotary"),
    [("llama", 5, True), ("qwen3", 9, True), ("gemma2", 9, True), ("gpt2", 0, False),
     ("llama-narrow", 5, True)],
)  # fmt: skip
def test_parts_are_replaced_and_given_back(family: str, num_norms: int, rotary: bool) -> None:
    model = tiny(family)
    parts = FusedParts(model)
    assert (len(parts._norms), bool(parts._rotary)) == (num_norms, rotary)
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode():
        plain = model(input_ids=ids).logits
        with parts():
            fused = model(input_ids=ids).logits
        again = model(input_ids=ids).logits
    torch.testing.assert_close(fused, plain, atol=2e-5, rtol=1e-5)
    assert torch.equal(again, plain), "outside of the context nothing is replaced"


@pytest.mark.parametrize("kind", [WIDE, HALF])
def test_a_gate_is_silu_times_the_other(kind: Any) -> None:
    x = (6 * torch.randn(5, 1, 96)).to(kind)
    wanted = torch.nn.functional.silu(x[..., :48].double()) * x[..., 48:].double()
    torch.testing.assert_close(
        steps.gate(x).double(), wanted, atol=ROUNDING[kind], rtol=ROUNDING[kind]
    )


@pytest.mark.parametrize("kind", [WIDE, HALF])
def test_a_norm_adds_first_and_in_place(kind: Any) -> None:
    x, added, weight = torch.randn(5, 48), torch.randn(5, 48).to(kind), torch.randn(48)
    wanted = x + added
    ours = steps.rms_norm(x, weight, eps=1e-5, kind=kind, added=added)
    assert torch.equal(x, wanted)
    plain = steps.rms_norm(wanted, weight, eps=1e-5, kind=torch.float32)
    torch.testing.assert_close(ours.float(), plain, atol=ROUNDING[kind], rtol=ROUNDING[kind])


@pytest.mark.parametrize("kind", [WIDE, HALF])
def test_attention_turns_query_and_key_first(kind: Any) -> None:
    given = case(4, 2, 32, kind=kind, query_kind=WIDE)
    angles = torch.randn(6, 1, 32)
    table = (angles.cos(), angles.sin())
    turned = {n: steps.turn(given[n], *table) for n in ("query", "key")}
    apart = steps.attend(**{**given, **turned}, scale=0.2)
    ours = steps.attend(**given, scale=0.2, angles=table)
    torch.testing.assert_close(ours, apart, atol=ROUNDING[kind], rtol=ROUNDING[kind])


@pytest.mark.parametrize(
    ("family", "fused"),
    [("llama", True), ("qwen2", True), ("granite", True), ("granite-residual", False),
     ("mistral", False), ("qwen3", False), ("gemma2", False), ("gpt2", False),
     ("llama-narrow", False)],
)  # fmt: skip
def test_layers_are_fused_where_a_trial_agrees(family: str, fused: bool) -> None:
    """Granite has Llama's parts and may scale what they give: only the trial tells."""
    ready = Ready(tiny(family), torch.float32)
    assert bool(ready._parts[-1]) == fused


def test_fused_layers_give_what_the_models_own_give(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = tiny("qwen2"), ragged(6)
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.k_proj.bias)
    sampling = Sampling(max_new_tokens=12)
    for dtype, gap in ((torch.float32, 2e-5), (torch.bfloat16, 0.3)):
        fused = generate(model, prompts, sampling, num_logps=0, dtype=dtype)
        with monkeypatch.context() as patch:
            patch.setattr(FusedLayers, "_alike", lambda self, model: False)
            own = generate(model, prompts, sampling, num_logps=0, dtype=dtype)
        pairs = [(a[0], b[0]) for a, b in zip(fused, own, strict=True)]
        if dtype == torch.float32:
            assert all(a.ids.tolist() == b.ids.tolist() for a, b in pairs)
        for a, b in pairs:
            assert a.logps is not None
            assert b.logps is not None
            differ = np.flatnonzero(a.ids != b.ids)  # bf16: another token, and all after it
            same = int(differ[0]) if len(differ) else len(a.ids)
            np.testing.assert_allclose(a.logps.chosen[:same], b.logps.chosen[:same], atol=gap)


def test_training_beside_generation_keeps_its_gradients() -> None:
    """The module that holds the rotary function is shared; a thread with gradients has its own."""
    model = tiny("llama")
    with FusedParts(model)():
        q = torch.randn(1, 2, 3, 32, requires_grad=True)
        angles = torch.randn(1, 3, 32)
        from transformers.models.llama import modeling_llama

        turned, _ = modeling_llama.apply_rotary_pos_emb(q, q, angles.cos(), angles.sin())
        assert turned.requires_grad


def test_without_a_compiler_the_tokens_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = tiny("gemma2"), ragged(4)
    monkeypatch.setattr(native, "COMPILERS", ("no-such-compiler",))
    native._load.cache_clear()
    try:
        assert "no-such-compiler" in native.why_not()
        out = generate(model, prompts, Sampling(max_new_tokens=12, temperature=0))
    finally:
        native._load.cache_clear()
    wanted = [greedy_uncached(model, prompt, 12) for prompt in prompts]
    assert [completion.ids.tolist() for (completion,) in out] == wanted


def test_a_compiler_that_fails_is_told_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho no such option >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    native._load.cache_clear()
    try:
        assert "no such option" in native.why_not()
    finally:
        native._load.cache_clear()


def test_the_library_is_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls: list[list[str]] = []
    run = subprocess.run

    def counted(words: list[str], **options: Any) -> Any:
        calls.append(words)
        return run(words, **options)

    monkeypatch.setattr(subprocess, "run", counted)
    for _ in range(2):
        native._load.cache_clear()
        assert not native.why_not()
    assert len(calls) == 1
    native._load.cache_clear()


def test_ready_leaves_the_model_as_it_was() -> None:
    model = tiny("llama")
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        with Ready(model, torch.bfloat16):
            pass
        assert torch.equal(model(input_ids=ids).logits, before)
