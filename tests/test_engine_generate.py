"""Generation over slots: the same tokens as plain forward passes, whatever is in the batch."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from rung.engine.engine import Engine
from rung.engine.generate import Ready, generate, stream
from rung.engine.request import Request
from rung.engine.sampling import Completion, Sampling
from rung.errors import ConfigError, DataError, TrainingError

VOCAB, CONTEXT = 97, 64
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,  # wide enough for steps.c; narrower heads step on torch's operations
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,  # peaked logits: a wrong key changes the greedy token
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen2": SIZES,
    "qwen3": SIZES,
    "mistral": SIZES | {"sliding_window": 5},
    "gemma2": SIZES
    | {"sliding_window": 6, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 0.5},
    "llama-narrow": SIZES | {"head_dim": 8},
    "granite": SIZES | {"logits_scaling": 3.0, "attention_multiplier": 0.2},
    "granite-residual": SIZES | {"residual_multiplier": 0.3},
    "gpt2": {
        "vocab_size": VOCAB,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": CONTEXT,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.3,
    },
}


def tiny(family: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    options = FAMILIES[family]
    options = options | {name: value for name, value in changes.items() if name in options}
    config = AutoConfig.for_model(family.split("-")[0], **options, attn_implementation="eager")
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return tiny("llama")


def ragged(count: int, *, seed: int = 0, longest: int = 20) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCAB, size=rng.integers(1, longest)) for _ in range(count)]


def greedy_uncached(model: PreTrainedModel, prompt: np.ndarray, count: int) -> list[int]:
    """The plain way: the whole sequence again for every token."""
    ids = prompt.tolist()
    with torch.no_grad():
        for _ in range(count):
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
            ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


def same(a: list[list[Completion]], b: list[list[Completion]]) -> bool:
    flat_a, flat_b = ([c for row in rows for c in row] for rows in (a, b))
    return len(flat_a) == len(flat_b) and all(
        x.stopped == y.stopped and x.ids.tolist() == y.ids.tolist()
        for x, y in zip(flat_a, flat_b, strict=True)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_equals_uncached_token_by_token(family: str) -> None:
    model = tiny(family)
    prompts = ragged(5)
    out = generate(model, prompts, Sampling(max_new_tokens=12, temperature=0))
    expected = [greedy_uncached(model, prompt, 12) for prompt in prompts]
    assert [completion.ids.tolist() for (completion,) in out] == expected
    assert len({token for ids in expected for token in ids}) > 5, (
        "a model that repeats itself would prove nothing"
    )


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_step_logits_equal_a_plain_forward(family: str) -> None:
    """The logits themselves, 1e-5, at ragged lengths; greedy tokens alone could agree by luck."""
    model = tiny(family)
    prompts = sorted(ragged(6, seed=3), key=len, reverse=True)  # the order of the engine's rows
    engine = Engine(model, max_rows=6)
    sampling = Sampling(max_new_tokens=4, temperature=0)
    samples = [engine.submit(Request(prompt, sampling))[0] for prompt in prompts]
    seen: list[torch.Tensor] = []
    hook = model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: seen.append(output[:, -1].clone())
    )
    with Ready(model, torch.float32):
        while engine.busy:
            engine.step()
    hook.remove()
    del seen[0]  # of the call that shows which layers read alike
    assert len(seen) == 4
    for row, (prompt, sample) in enumerate(zip(prompts, samples, strict=True)):
        ids = torch.tensor([prompt.tolist() + sample.ids])
        with torch.no_grad():
            plain = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        cached = torch.stack([step[row] for step in seen])
        torch.testing.assert_close(cached, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("max_rows", [1, 3, 64])
def test_a_sample_does_not_depend_on_its_neighbours(llama: PreTrainedModel, max_rows: int) -> None:
    prompts = ragged(9)
    sampling = Sampling(max_new_tokens=10, seed=5, stop_ids=tuple(range(3, 15)))
    together = generate(llama, prompts, sampling, num_samples=2, max_rows=max_rows)
    alone = [
        generate(llama, [prompt], sampling, num_samples=2, keys=[key])[0]
        for key, prompt in enumerate(prompts)
    ]
    assert same(together, alone)
    lengths = {len(c.ids) for row in together for c in row}
    assert len(lengths) > 3, "rows must finish at different times, or no slot is refilled"


def test_samples_of_a_prompt_differ_and_seeds_matter(llama: PreTrainedModel) -> None:
    prompt = ragged(1)
    first = generate(llama, prompt, Sampling(max_new_tokens=16, seed=0), num_samples=4)
    again = generate(llama, prompt, Sampling(max_new_tokens=16, seed=0), num_samples=4)
    other = generate(llama, prompt, Sampling(max_new_tokens=16, seed=1), num_samples=4)
    assert same(first, again)
    assert not same(first, other)
    assert len({tuple(c.ids.tolist()) for c in first[0]}) == 4


def test_the_prompt_is_read_once_for_all_samples(llama: PreTrainedModel) -> None:
    fed: list[int] = []
    hook = llama.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    generate(llama, [np.arange(3, 23)], Sampling(max_new_tokens=1), num_samples=8)
    hook.remove()
    assert fed[-2:] == [19, 8], "19 prompt tokens once, then the last one for each of 8 samples"


def test_stop_ids_end_a_sample_and_are_kept(llama: PreTrainedModel) -> None:
    prompt = ragged(1)[0]
    free = greedy_uncached(llama, prompt, 12)
    stop = free[5]
    sampling = Sampling(max_new_tokens=12, temperature=0, stop_ids=(stop,))
    completion = generate(llama, [prompt], sampling)[0][0]
    assert completion.stopped
    assert completion.ids.tolist() == free[: free.index(stop) + 1]
    limited = generate(llama, [prompt], Sampling(max_new_tokens=3, temperature=0))[0][0]
    assert not limited.stopped
    assert limited.ids.tolist() == free[:3]


def test_the_context_ends_a_sample(llama: PreTrainedModel) -> None:
    prompt = np.full(CONTEXT - 4, 7)
    completion = generate(llama, [prompt], Sampling(max_new_tokens=50, temperature=0))[0][0]
    assert len(completion.ids) == 4
    assert not completion.stopped


@pytest.mark.parametrize(("length", "word"), [(CONTEXT, "64 tokens"), (0, "empty")])
def test_a_prompt_without_room_is_refused(llama: PreTrainedModel, length: int, word: str) -> None:
    with pytest.raises(DataError, match=word):
        generate(llama, [np.full(length, 7)], Sampling())


def test_on_token_and_stream_give_what_generate_gives(llama: PreTrainedModel) -> None:
    prompts = ragged(3)
    sampling = Sampling(max_new_tokens=8, seed=2, stop_ids=(4, 5, 6, 7))
    heard: dict[int, list[int]] = {}
    out = generate(
        llama,
        prompts,
        sampling,
        num_samples=2,
        on_token=lambda row, token: heard.setdefault(row, []).append(token),
    )
    flat = [c.ids.tolist() for row in out for c in row]
    assert [heard[row] for row in range(6)] == flat
    assert list(stream(llama, prompts[1], sampling, key=1)) == out[1][0].ids.tolist()


def test_the_model_is_left_as_it_was(llama: PreTrainedModel) -> None:
    llama.train()
    before = llama.config._attn_implementation
    tokens = stream(llama, np.array([5, 6]), Sampling(max_new_tokens=3))
    next(tokens)
    assert llama.training
    assert llama.config._attn_implementation == before
    assert torch.is_grad_enabled(), "between tokens the caller's torch state is its own"
    llama.eval()


def test_dropout_is_off_while_generating() -> None:
    torch.manual_seed(0)
    config = GPT2Config(**FAMILIES["gpt2"], attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    model = GPT2LMHeadModel(config).train()
    prompt = ragged(1)[0]
    out = generate(model, [prompt], Sampling(max_new_tokens=6, temperature=0))
    assert out[0][0].ids.tolist() == greedy_uncached(model.eval(), prompt, 6)


def test_damaged_weights_are_said_to_be_damaged() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight[3] = float("nan")
    for temperature in (0.0, 1.0):
        with pytest.raises(TrainingError, match="not finite"):
            generate(model, [np.array([5])], Sampling(temperature=temperature))


def test_bf16_weights_run() -> None:
    model = tiny("llama").to(torch.bfloat16)
    prompt = ragged(1)
    sampling = Sampling(max_new_tokens=5, temperature=0)
    assert len(generate(model, prompt, sampling)[0][0].ids) == 5


def test_bf16_products_run(llama: PreTrainedModel) -> None:
    out = generate(llama, ragged(4), Sampling(max_new_tokens=5), dtype=torch.bfloat16)
    assert all(len(c.ids) == 5 for (c,) in out)


def test_no_prompts_give_no_samples(llama: PreTrainedModel) -> None:
    assert generate(llama, [], Sampling()) == []


@pytest.mark.parametrize(
    "wrong", [{"max_new_tokens": -1}, {"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}]
)
def test_impossible_sampling_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Sampling(**wrong)
