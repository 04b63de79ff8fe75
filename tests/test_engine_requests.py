"""The engine under requests that come and go: each gets what it would get alone."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from test_engine_generate import FAMILIES, VOCAB, greedy_uncached, ragged, tiny
from transformers import PreTrainedModel
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from rung.engine.engine import PART, Engine
from rung.engine.generate import Ready, generate
from rung.engine.request import Request, Sample
from rung.engine.sampling import Sampling
from rung.engine.slots import BLOCK
from rung.errors import DataError
from rung.model.adapter_config import AdapterConfig
from rung.model.adapters import add_adapter, attach_adapter, save_trained, using
from rung.model.attention import register, to_torch
from rung.model.forward import target_logps
from rung.tokens.forest import group, pack

GREEDY = Sampling(max_new_tokens=10, temperature=0)


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return tiny("llama", max_position_embeddings=256)


def run(engine: Engine, model: PreTrainedModel) -> None:
    with Ready(model, torch.float32):
        while engine.busy:
            engine.step()


def answers(model: PreTrainedModel, requests: list[Request], **options: Any) -> list[list[int]]:
    engine = Engine(model, **options)
    samples = [sample for request in requests for sample in engine.submit(request)]
    run(engine, model)
    return [sample.ids for sample in samples]


def long_prompts(count: int, *, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCAB, size=rng.integers(40, 180)) for _ in range(count)]


MIXED = [
    Sampling(max_new_tokens=8, temperature=0),
    Sampling(max_new_tokens=14, seed=1),
    Sampling(max_new_tokens=9, seed=2, top_k=5, temperature=1.5),
    Sampling(max_new_tokens=20, seed=3, top_p=0.8),
    Sampling(max_new_tokens=5, seed=4, min_p=0.05, repetition_penalty=1.3),
    Sampling(max_new_tokens=12, seed=5, presence_penalty=0.7, frequency_penalty=0.4),
    Sampling(max_new_tokens=7, seed=6, logit_bias=((5, 4.0), (9, -100.0))),
    Sampling(max_new_tokens=16, seed=7, stop_ids=(4, 5, 6, 7, 8, 9), min_new_tokens=3),
]


def test_32_mixed_requests_together_equal_one_by_one(llama: PreTrainedModel) -> None:
    prompts = ragged(16, seed=1) + long_prompts(16)
    requests = [Request(p, MIXED[i % 8], key=i) for i, p in enumerate(prompts)]
    alone = [answers(llama, [request])[0] for request in requests]
    options = {"max_rows": 7, "in_parts": True, "cached_tokens": 512}
    assert answers(llama, requests, **options) == alone
    assert len({tuple(ids) for ids in alone}) > 28, "equal answers would prove nothing"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_read_in_parts_is_a_prompt_read_at_once(family: str) -> None:
    model = tiny(family, max_position_embeddings=256, n_positions=256)
    prompts = long_prompts(3)
    options = {"in_parts": True, "max_rows": 3}
    first = Request(np.array([5, 6]), Sampling(max_new_tokens=40, temperature=0))
    with_others = answers(model, [first, *(Request(p, GREEDY) for p in prompts)], **options)
    assert with_others[1:] == [greedy_uncached(model, p, 10) for p in prompts]


def test_samples_at_work_go_on_while_a_long_prompt_is_read(llama: PreTrainedModel) -> None:
    engine = Engine(llama, in_parts=True, max_rows=2)
    (running,) = engine.submit(Request(np.array([5, 6]), Sampling(max_new_tokens=200)))
    with Ready(llama, torch.float32):
        engine.step()
        engine._pace.part = lambda most: PART  # type: ignore[method-assign]
        (late,) = engine.submit(Request(long_prompts(1)[0], GREEDY))
        steps = 0
        while not late.ids:
            before = len(running.ids)
            engine.step()
            assert len(running.ids) == before + 1
            steps += 1
    assert steps > len(late.request.prompt) // PART


def test_the_last_free_row_is_not_kept_for_two_that_could_share_a_call(
    llama: PreTrainedModel,
) -> None:
    engine = Engine(llama, in_parts=True, max_rows=16)
    longest = Sampling(max_new_tokens=100)
    for number in range(15):
        engine.submit(Request(np.array([5, 6]), longest, key=number))
    with Ready(llama, torch.float32):
        engine.step()
        (late,) = engine.submit(Request(np.array([5, 6]), GREEDY))
        for _ in range(4):
            engine.step()
    assert engine.running == 16
    assert late.ids


def test_prompts_that_begin_alike_are_read_once(llama: PreTrainedModel) -> None:
    shared = long_prompts(1)[0][: 2 * BLOCK + 5]
    prompts = [np.append(shared, [10 + i, 20 + i, 3]) for i in range(4)]
    engine = Engine(llama, cached_tokens=1024, max_rows=1)
    samples = [engine.submit(Request(prompt, GREEDY))[0] for prompt in prompts]
    run(engine, llama)
    assert [s.ids for s in samples] == [greedy_uncached(llama, p, 10) for p in prompts]
    assert engine.prefixes.hits == 3 * 2 * BLOCK
    assert engine.prompt_tokens == sum(len(p) - 1 for p in prompts) - engine.prefixes.hits


def test_a_conversation_goes_on_from_what_was_said(llama: PreTrainedModel) -> None:
    engine = Engine(llama, cached_tokens=1024)
    first = long_prompts(1)[0][:20]
    (said,) = engine.submit(Request(first, Sampling(max_new_tokens=30, temperature=0)))
    run(engine, llama)
    more = np.concatenate([first, said.ids, [7, 8, 9]])
    (answer,) = engine.submit(Request(more, GREEDY))
    run(engine, llama)
    assert engine.prefixes.hits == BLOCK  # of 20 + 29 tokens, one whole block
    assert answer.ids == greedy_uncached(llama, more, 10)


def test_old_blocks_make_room_and_new_weights_forget(llama: PreTrainedModel) -> None:
    engine = Engine(llama, cached_tokens=4 * BLOCK, max_rows=2)
    prompts = long_prompts(6)
    for prompt in (*prompts, *prompts):
        engine.submit(Request(prompt, GREEDY))
    run(engine, llama)
    model = tiny("llama", max_position_embeddings=256)
    engine = Engine(model, cached_tokens=1024)
    prompt = prompts[0]
    for _ in range(2):
        (sample,) = engine.submit(Request(prompt, GREEDY))
        run(engine, model)
        assert sample.ids == greedy_uncached(model, prompt, 10)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(-1.1)
        engine.forget()


@pytest.mark.parametrize("num_samples", [1, 3])
def test_log_probabilities_are_those_of_the_training_forward(
    llama: PreTrainedModel, num_samples: int
) -> None:
    """1e-4 in float32, so that rollouts and trainer agree; the sampler's heat is left out."""
    prompts = ragged(4, seed=4)
    sampling = Sampling(max_new_tokens=12, temperature=1.7, top_k=20, seed=3)
    out = generate(llama, prompts, sampling, num_samples=num_samples, num_logps=2)
    for prompt, row in zip(prompts, out, strict=True):
        forest = to_torch(pack([group(prompt, [c.ids for c in row])]), torch.device("cpu"))
        with torch.no_grad(), over_forests(llama):
            expected, _ = target_logps(llama, forest)
        got = np.concatenate([c.logps.chosen for c in row if c.logps is not None])
        np.testing.assert_allclose(got, expected.numpy(), atol=1e-4)
        for c in row:
            assert c.logps is not None
            assert c.logps.top.shape == (12, 2)
            assert (c.logps.top[:, 0] >= c.logps.chosen - 1e-6).all()


@contextmanager
def over_forests(model: PreTrainedModel) -> Iterator[None]:
    before = model.config._attn_implementation
    model.config._attn_implementation = register()
    yield
    model.config._attn_implementation = before


@pytest.mark.parametrize("new_tokens", [0, 4])
def test_echo_scores_the_prompt(llama: PreTrainedModel, new_tokens: int) -> None:
    prompts = [*ragged(3, seed=2), long_prompts(1)[0], np.array([9])]
    engine = Engine(llama, in_parts=True, cached_tokens=512, max_rows=2)
    sampling = Sampling(max_new_tokens=new_tokens, temperature=0)
    samples = [
        engine.submit(Request(p, sampling, num_logps=3, echo=True))[0]
        for p in prompts
        for _ in "ab"
    ]
    run(engine, llama)
    for sample in samples:
        prompt = torch.tensor(sample.request.prompt)
        with torch.no_grad():
            logps = torch.log_softmax(llama(prompt[None], use_cache=False).logits[0], -1)
        scored = sample.prompt_logps
        assert scored is not None
        assert math.isnan(scored.chosen[0])
        expected = logps[:-1].gather(1, prompt[1:, None])[:, 0]
        np.testing.assert_allclose(scored.chosen[1:], expected.numpy(), atol=1e-5)
        top = logps[:-1].topk(3)
        np.testing.assert_allclose(scored.top[1:], top.values.numpy(), atol=1e-5)
        assert len(sample.ids) == new_tokens
        assert sample.finish == "length"


def test_penalties_and_biases_by_hand() -> None:
    from rung.engine.reshape import reshape

    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(0))
    prompt = np.array([3, 4, 5])

    def shaped(**options: Any) -> torch.Tensor:
        sample = Sample(Request(prompt, Sampling(**options)), 0, 10, ids=[4, 7, 7])
        return reshape(logits, [sample])[0]

    seen = torch.tensor([[3, 4, 5, 4, 7, 7]])
    theirs = RepetitionPenaltyLogitsProcessor(1.5)(seen, logits.clone())[0]
    torch.testing.assert_close(shaped(repetition_penalty=1.5), theirs)
    expected = logits[0].clone()
    expected[4] -= 0.5 + 0.25
    expected[7] -= 0.5 + 2 * 0.25
    torch.testing.assert_close(shaped(presence_penalty=0.5, frequency_penalty=0.25), expected)
    expected = logits[0].clone()
    expected[11] += 3.0
    torch.testing.assert_close(shaped(logit_bias=((11, 3.0),)), expected)
    early = shaped(min_new_tokens=4, stop_ids=(8, 9))
    assert early[[8, 9]].tolist() == [-math.inf] * 2
    assert torch.equal(shaped(min_new_tokens=3, stop_ids=(8, 9)), logits[0])


class Only:
    """Allows the tokens of a list, one after the other."""

    def __init__(self, tokens: list[int], at: int = 0) -> None:
        self.tokens, self.at = tokens, at

    def mask(self) -> np.ndarray:
        allowed = np.zeros(VOCAB - 5, dtype=bool)
        allowed[self.tokens[self.at]] = True
        return allowed

    def accept(self, token: int) -> None:
        assert token == self.tokens[self.at]
        self.at += 1

    @property
    def done(self) -> bool:
        return self.at == len(self.tokens)

    def clone(self) -> "Only":
        return Only(self.tokens, self.at)


def test_a_constraint_says_what_may_follow(llama: PreTrainedModel) -> None:
    requests = [
        Request(np.array([5]), Sampling(seed=1), num_samples=2, constraint=Only([9, 8, 7, 6])),
        Request(np.array([5]), GREEDY),
    ]
    out = answers(llama, requests)
    assert out[:2] == [[9, 8, 7, 6]] * 2
    assert out[2] == greedy_uncached(llama, np.array([5]), 10)


def test_a_cancelled_sample_leaves_the_others_alone(llama: PreTrainedModel) -> None:
    prompts = ragged(5, seed=6) + long_prompts(3)
    engine = Engine(llama, max_rows=3, in_parts=True)
    samples = [engine.submit(Request(p, GREEDY))[0] for p in prompts]
    with Ready(llama, torch.float32):
        for _ in range(4):
            engine.step()
        for index in (0, 4, 6):  # at work, waiting, perhaps half read
            engine.cancel(samples[index])
            assert samples[index].finish in ("cancelled", "length")
        while engine.busy:
            engine.step()
    for index in (1, 2, 3, 5, 7):
        assert samples[index].ids == greedy_uncached(llama, prompts[index], 10)
    assert engine.running == engine.waiting == 0


@pytest.mark.parametrize("reason", ["cancelled", "stop"])
def test_a_sample_leaves_between_steps(llama: PreTrainedModel, reason: str) -> None:
    """As where a client goes away: nothing of a step's context is there, and rows move up."""
    prompts = [np.arange(5 + i, 45 + i) for i in range(4)]
    engine = Engine(llama, max_rows=4, cached_tokens=128)
    samples = [engine.submit(Request(p, GREEDY))[0] for p in prompts]
    ready = Ready(llama, torch.float32)
    for _ in range(4):
        with ready:
            engine.step()
    engine.finish(samples[:2], reason)
    while engine.busy:
        with ready:
            engine.step()
    for prompt, sample in zip(prompts[2:], samples[2:], strict=True):
        assert sample.ids == greedy_uncached(llama, prompt, 10)


def test_memory_bounds_what_is_at_work(llama: PreTrainedModel) -> None:
    engine = Engine(llama, max_tokens=60, max_rows=8)
    prompts = [np.full(10, 5 + i) for i in range(7)]
    samples = [engine.submit(Request(p, GREEDY))[0] for p in prompts]
    with Ready(llama, torch.float32):
        while engine.busy:
            engine.step()
            assert engine.tokens_held <= 60
    assert [s.ids for s in samples] == [greedy_uncached(llama, p, 10) for p in prompts]
    with pytest.raises(DataError, match="more than the 60"):
        engine.submit(Request(np.full(55, 5), GREEDY))


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_each_row_speaks_with_its_own_adapter(tmp_path: Any, kind: Any) -> None:
    """Two adapters over one base in one batch: what each would say alone."""
    prompts = ragged(6, seed=8)
    model = tiny("llama")
    plain = [greedy_uncached(model, p, 10) for p in prompts]
    config = AdapterConfig(adapter=kind, lora_r=4)
    for seed, name in enumerate(("a", "b")):
        trained = tiny("llama")
        add_adapter(trained, config, dtype=torch.float32, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter_name, parameter in trained.named_parameters():
                if "lora_B" in parameter_name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        save_trained(trained, tmp_path / name, base="base")
        attach_adapter(model, tmp_path / name, name=name, dtype=torch.float32, bits=None)
    expected = []
    for prompt, voice in zip(prompts, (None, "a", "b") * 2, strict=True):
        with using(model, voice):
            expected.append(greedy_uncached(model, prompt, 10))
    with using(model, None):
        voices = (None, "a", "b") * 2
        requests = [Request(p, GREEDY, adapter=v) for p, v in zip(prompts, voices, strict=True)]
        assert answers(model, requests, max_rows=4, cached_tokens=256) == expected
    assert [expected[i] for i in (0, 3)] == [plain[i] for i in (0, 3)]
    assert expected[1] != plain[1]
    assert expected[2] != plain[2]
