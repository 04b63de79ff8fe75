"""litellm: the model is called openai/NAME, the server is its api_base."""

import importlib.metadata
import math
from typing import Any

import litellm
from behaviours import (
    KEY,
    LONG,
    MODEL,
    NO_MODEL,
    QUESTION,
    ROOM,
    SCHEMA,
    SYSTEM,
    TOKENS,
    TOOL,
    URL,
    WRONG_KEY,
    behaviour,
    frees_the_server,
    is_place,
    refused,
    run,
    stop_in,
)

litellm.telemetry = False
litellm.suppress_debug_info = True
ASKED = [{"role": "user", "content": QUESTION}]
KNOWN = {"api_base": URL, "api_key": KEY, "num_retries": 0, "max_retries": 0}


def chat_with(messages: list[Any] = ASKED, **options: Any) -> Any:
    told = {"model": f"openai/{MODEL}", "max_tokens": TOKENS, "temperature": 0, **KNOWN}
    return litellm.completion(messages=messages, **{**told, **options})


def text_of(**options: Any) -> str:
    return chat_with(**options).choices[0].message.content


@behaviour
def models() -> None:
    found = litellm.get_valid_models(
        check_provider_endpoint=True, custom_llm_provider="openai", api_key=KEY, api_base=URL
    )
    assert found in ([MODEL], [f"openai/{MODEL}"]), found


@behaviour
def chat() -> None:
    answer = chat_with()
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == TOKENS


@behaviour
def stream() -> None:
    parts = [chunk.choices[0].delta.content or "" for chunk in chat_with(stream=True)]
    assert "".join(parts) == text_of()


@behaviour
def usage() -> None:
    *_, last = chat_with(stream=True, stream_options={"include_usage": True})
    assert last.usage.completion_tokens == TOKENS
    assert last.usage.prompt_tokens == chat_with().usage.prompt_tokens


@behaviour
def system() -> None:
    told = chat_with([{"role": "system", "content": SYSTEM}, *ASKED])
    assert told.usage.prompt_tokens > chat_with().usage.prompt_tokens


@behaviour
def stop() -> None:
    end, before = stop_in(text_of())
    answer = chat_with(stop=[end])
    assert answer.choices[0].message.content == before
    assert answer.choices[0].finish_reason == "stop"


@behaviour
def seed() -> None:
    assert text_of(temperature=1, seed=7) == text_of(temperature=1, seed=7)
    assert text_of(temperature=1, seed=7) != text_of(temperature=1, seed=8)


@behaviour
def logprobs() -> None:
    choice = chat_with(logprobs=True, top_logprobs=3).choices[0]
    tokens = choice.logprobs.content
    assert "".join(token.token for token in tokens) == choice.message.content
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 3 for token in tokens)


@behaviour
def n() -> None:
    choices = chat_with(n=3, temperature=1, seed=0).choices
    assert len({choice.message.content for choice in choices}) == 3


@behaviour
def tools() -> None:
    options = {"tool_choice": "required", "parallel_tool_calls": False, "max_tokens": ROOM}
    choice = chat_with(tools=[TOOL], **options).choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert is_place(call.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": "Rain."}
    told = [*ASKED, choice.message, result]
    assert chat_with(told, tools=[TOOL]).choices[0].message.content
    chunks = list(chat_with(tools=[TOOL], stream=True, **options))
    whole = litellm.stream_chunk_builder(chunks).choices[0].message
    assert whole.tool_calls[0].function.arguments == call.function.arguments


@behaviour
def schema() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
    assert is_place(text_of(response_format=form, max_tokens=ROOM))


@behaviour
def embeddings() -> None:
    found = litellm.embedding(model=f"openai/{MODEL}", input=["one", "two"], **KNOWN).data
    assert all(math.isclose(math.hypot(*one["embedding"]), 1, abs_tol=1e-5) for one in found)


@behaviour
def completions() -> None:
    told = {"model": f"text-completion-openai/{MODEL}", "max_tokens": TOKENS, **KNOWN}
    assert litellm.text_completion(prompt=QUESTION, temperature=0, **told).choices[0].text


@behaviour
def echo() -> None:
    told = {"model": f"text-completion-openai/{MODEL}", **KNOWN}
    answer = litellm.text_completion(
        prompt=QUESTION, temperature=0, max_tokens=1, echo=True, logprobs=1, **told
    )
    found = answer.choices[0].logprobs
    assert "".join(found.tokens) == answer.choices[0].text
    assert answer.choices[0].text.startswith(QUESTION)


@behaviour
def unknown_model() -> None:
    with refused(litellm.NotFoundError, NO_MODEL):
        chat_with(model=f"openai/{NO_MODEL}")


@behaviour
def wrong_key() -> None:
    with refused(litellm.AuthenticationError, "API key"):
        chat_with(api_key=WRONG_KEY)


@behaviour
def abort() -> None:
    with frees_the_server(), refused(litellm.Timeout, ""):
        chat_with(max_tokens=LONG, timeout=1)


if __name__ == "__main__":
    run(importlib.metadata.version("litellm"))
