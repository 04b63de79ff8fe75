"""The server over the real engine and a real, if random, model: OpenAI's own client asks."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
from exchange_models import make_model, tiny_tokenizer
from serve_fake import Client, running, until
from transformers import AutoModelForCausalLM

from rung.engine.generate import generate
from rung.engine.remote import RemoteEngine, sample_seed
from rung.engine.sampling import Sampling
from rung.engine.service import Service, ServiceOptions
from rung.model.load import load_model
from rung.serve.state import ServerState
from rung.store.store import Store
from rung.tokens.tokenizer import load_tokenizer

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "warm": {"type": "boolean"}},
    "required": ["city", "warm"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model = make_model("llama")
    model.config.max_position_embeddings = 1024
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    model.save_pretrained(folder)
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tiny_tokenizer(special, TEMPLATE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Client, Service]]:
    options = ServiceOptions(max_rows=8, precision="fp32")
    service = Service.open({"tiny": folder}, options=options)
    with running(ServerState(Store(tmp_path_factory.mktemp("store")), service=service)) as client:
        yield client, service
    service.close(drain_seconds=5)


@pytest.fixture(scope="module")
def ai(served: tuple[Client, Service]) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served[0].url}/v1", api_key="none", max_retries=0)


def ask(ai: openai.OpenAI, text: str, **options: Any) -> Any:
    options = {"model": "tiny", "max_tokens": 24, **options}
    return ai.chat.completions.create(messages=[{"role": "user", "content": text}], **options)


def test_a_stream_says_what_one_answer_says(ai: openai.OpenAI) -> None:
    for options in ({"temperature": 0}, {"seed": 7}, {"seed": 7, "top_p": 0.8, "n": 2}):
        whole = ask(ai, "Once upon a time", **options)
        parts: dict[int, str] = {}
        for chunk in ask(ai, "Once upon a time", stream=True, **options):
            for choice in chunk.choices:
                parts[choice.index] = parts.get(choice.index, "") + (choice.delta.content or "")
        assert [parts[c.index] for c in whole.choices] == [c.message.content for c in whole.choices]
        assert whole.usage.completion_tokens <= 24 * len(whole.choices)


def test_clients_at_once_do_not_hear_each_other(ai: openai.OpenAI) -> None:
    texts = [f"What is the capital of {n}? " * (1 + n % 5) for n in range(20)]
    alone = [ask(ai, text, seed=n).choices[0].message.content for n, text in enumerate(texts)]
    together: list[Any] = [None] * 20

    def one(number: int) -> None:
        together[number] = ask(ai, texts[number], seed=number).choices[0].message.content

    threads = [threading.Thread(target=one, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_even_a_random_model_keeps_to_a_schema(ai: openai.OpenAI) -> None:
    format = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
    for seed in range(5):
        answer = ask(ai, "Where?", seed=seed, response_format=format, max_tokens=100)
        found = json.loads(answer.choices[0].message.content)
        assert found["city"] in ("Oslo", "Rome")
        assert isinstance(found["warm"], bool)
        assert answer.choices[0].finish_reason == "stop"


def test_a_tool_that_must_be_called_is_called(ai: openai.OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
    answer = ask(ai, "Where?", seed=1, tools=[tool], tool_choice="required", max_tokens=150)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")
    assert answer.choices[0].finish_reason == "tool_calls"


def test_scores_of_a_text_are_those_of_transformers(ai: openai.OpenAI, folder: Path) -> None:
    ids = load_tokenizer(folder).encode("What is the capital? It is here.").tolist()
    answer = ai.completions.create(model="tiny", prompt=ids, max_tokens=0, echo=True, logprobs=1)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logps = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
    expected = logps[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0].tolist()
    assert answer.choices[0].logprobs.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)


def test_collecting_over_it_gets_the_ids_that_were_sampled(
    served: tuple[Client, Service], folder: Path
) -> None:
    """A random model's tokens are not those its text would be cut into again."""
    tokenizer = load_tokenizer(folder)
    prompt = tokenizer.encode("Once upon a time")
    sampling = Sampling(max_new_tokens=24, seed=3, stop_ids=tokenizer.stop_ids)
    engine = RemoteEngine(f"{served[0].url}/v1")
    assert engine.connect(tokenizer).endswith("sent as ids")
    (row,) = engine.generate([prompt], sampling, num_samples=3, keys=[8])
    engine.close()
    model = load_model(folder)
    for number, told in enumerate(row):
        own = replace(sampling, seed=sample_seed(3, 8, number))
        assert told.ids.tolist() == generate(model, [prompt], own)[0][0].ids.tolist()
        assert told.exact
    assert any(tokenizer.encode(t.text).tolist() != t.ids.tolist() for t in row)


def test_embeddings_come_through(ai: openai.OpenAI, served: tuple[Client, Service]) -> None:
    service = served[1]
    tokenizer = service.tokenizer("tiny")
    ids = np.append(np.int32(tokenizer.bos), tokenizer.encode("Once upon a time"))
    vector = ai.embeddings.create(model="tiny", input=ids.tolist()).data[0].embedding
    own = service.embed("tiny", [ids]).result(30)[0]
    cosine = float(np.dot(vector, own) / np.linalg.norm(vector))
    assert cosine == pytest.approx(1.0, abs=1e-3)


def test_a_client_that_hangs_up_frees_its_slot(
    ai: openai.OpenAI, served: tuple[Client, Service]
) -> None:
    stream = ask(ai, "Once", stream=True, max_tokens=200, logit_bias={"0": -100, "2": -100})
    next(iter(stream))
    stream.close()
    until(lambda: served[1].stats().kv_tokens_used == 0)
