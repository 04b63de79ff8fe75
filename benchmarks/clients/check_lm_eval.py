"""lm-eval: local-completions with the server's own tokenizer, and local-chat-completions."""

import importlib.metadata
import json
import os
from typing import Any
from unittest.mock import patch

from behaviours import (
    KEY,
    MODEL,
    NO_MODEL,
    QUESTION,
    TOKENS,
    URL,
    WRONG_KEY,
    behaviour,
    fetch,
    refused,
    run,
    stop_in,
)
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

os.environ["OPENAI_API_KEY"] = KEY
ROOT = URL.removesuffix("/v1")
PAIRS = [(QUESTION, " It is here."), (QUESTION, " Oslo"), ("", "Once upon a time")]


def harness(name: str = MODEL, **options: Any) -> LocalCompletionsAPI:
    told = {"base_url": f"{URL}/completions", "max_retries": 1, "auth_token": KEY, **options}
    return LocalCompletionsAPI(model=name, **told)


def generate(model: Any, asked: str = QUESTION, **options: Any) -> str:
    told = {"max_gen_toks": TOKENS, "temperature": 0, "until": ["never to be seen"], **options}
    (text,) = model.generate_until([Instance("generate_until", {}, (asked, told), 0)])
    return text


def score(pairs: list[tuple[str, str]], **options: Any) -> list[tuple[float, bool]]:
    requests = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)]
    return harness(**options).loglikelihood(requests)


def ids_of(text: str) -> list[int]:
    asked = {"model": MODEL, "prompt": text, "add_special_tokens": False}
    return json.loads(fetch(f"{ROOT}/tokenize", asked))["tokens"]


def sum_of(before: str, after: str) -> float:
    """The log-probability of `after`, by plain HTTP."""
    begin = ids_of(before) or [json.loads(fetch(f"{ROOT}/tokenizer_info"))["bos_token_id"]]
    whole = [*begin, *ids_of(after)] if not before else ids_of(before + after)
    asked = {"model": MODEL, "prompt": whole, "max_tokens": 0, "echo": True, "logprobs": 1}
    told = json.loads(fetch(f"{URL}/completions", asked))["choices"][0]["logprobs"]
    return sum(told["token_logprobs"][len(begin) :])


@behaviour
def chat() -> None:
    model = LocalChatCompletion(
        model=MODEL, base_url=f"{URL}/chat/completions", tokenizer_backend=None, max_retries=1
    )
    asked = model.apply_chat_template([{"role": "user", "content": QUESTION}])
    assert generate(model, asked)


@behaviour
def stop() -> None:
    text = generate(harness())
    end, before = stop_in(text)
    assert generate(harness(), until=[end]) == before


@behaviour
def seed() -> None:
    said = [generate(harness(seed=n), temperature=1, do_sample=True) for n in (7, 7, 8)]
    assert said[0] == said[1] != said[2]


@behaviour
def completions() -> None:
    assert generate(harness()) == generate(harness(num_concurrent=4))


@behaviour
def echo() -> None:
    wanted = [sum_of(*pair) for pair in PAIRS]
    for options in ({}, {"batch_size": 3}, {"num_concurrent": 4}):
        found = score(PAIRS, **options)
        assert all(abs(a[0] - b) < 1e-4 for a, b in zip(found, wanted, strict=True)), found


@behaviour
def unknown_model() -> None:
    with refused(Exception, "404"):
        generate(harness(NO_MODEL, tokenizer_backend=None))


@behaviour
def wrong_key() -> None:
    with patch.dict(os.environ, OPENAI_API_KEY=WRONG_KEY), refused(Exception, "401"):
        generate(harness(tokenizer_backend=None))


if __name__ == "__main__":
    run(importlib.metadata.version("lm-eval"))
