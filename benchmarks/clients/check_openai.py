"""openai for Python, 2.x and 3.x alike."""

import math
from typing import Any

import openai
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

client = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0)
ASKED = [{"role": "user", "content": QUESTION}]


def chat_with(messages: list[Any] = ASKED, **options: Any) -> Any:
    options = {"model": MODEL, "max_tokens": TOKENS, "temperature": 0, **options}
    return client.chat.completions.create(messages=messages, **options)


def text_of(**options: Any) -> str:
    return chat_with(**options).choices[0].message.content


@behaviour
def models() -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


@behaviour
def chat() -> None:
    answer = chat_with()
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == TOKENS


@behaviour
def stream() -> None:
    chunks = list(chat_with(stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text_of()
    assert chunks[-1].choices[0].finish_reason == "length"


@behaviour
def usage() -> None:
    *_, last = chat_with(stream=True, stream_options={"include_usage": True})
    assert last.usage == chat_with().usage


@behaviour
def system() -> None:
    told = chat_with([{"role": "system", "content": SYSTEM}, *ASKED])
    assert told.usage.prompt_tokens > chat_with().usage.prompt_tokens
    developer = chat_with([{"role": "developer", "content": SYSTEM}, *ASKED])
    assert developer.choices[0].message.content == told.choices[0].message.content


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
    assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
    assert all(token.logprob <= 0 for token in choice.logprobs.content)
    assert all(len(token.top_logprobs) == 3 for token in choice.logprobs.content)


@behaviour
def n() -> None:
    answer = chat_with(n=3, temperature=1, seed=0)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3


@behaviour
def tools() -> None:
    options = {"tools": [TOOL], "tool_choice": "required", "max_tokens": ROOM}
    choice = chat_with(**options, parallel_tool_calls=False).choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert call.function.name == "get_weather"
    assert is_place(call.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": "Rain."}
    assert chat_with([*ASKED, choice.message, result], tools=[TOOL]).choices[0].message.content
    with client.chat.completions.stream(
        model=MODEL, messages=ASKED, temperature=0, parallel_tool_calls=False, **options
    ) as events:
        streamed = events.get_final_completion().choices[0].message.tool_calls[0].function
    assert streamed.arguments == call.function.arguments


@behaviour
def schema() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
    assert is_place(text_of(response_format=form, max_tokens=ROOM))


@behaviour
def embeddings() -> None:
    found = client.embeddings.create(model=MODEL, input=["one", "two"])
    assert [math.isclose(math.hypot(*e.embedding), 1, abs_tol=1e-5) for e in found.data] == [1, 1]


@behaviour
def completions() -> None:
    answer = client.completions.create(model=MODEL, prompt=["a", "b"], max_tokens=TOKENS, seed=0)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all(choice.text for choice in answer.choices)


@behaviour
def echo() -> None:
    answer = client.completions.create(
        model=MODEL, prompt=QUESTION, max_tokens=0, echo=True, logprobs=1
    )
    found = answer.choices[0].logprobs
    assert "".join(found.tokens) == answer.choices[0].text == QUESTION
    assert all(value <= 0 for value in found.token_logprobs if value is not None)


@behaviour
def unknown_model() -> None:
    with refused(openai.NotFoundError, "model_not_found"):
        chat_with(model=NO_MODEL)


@behaviour
def wrong_key() -> None:
    with refused(openai.AuthenticationError, "invalid_api_key"):
        client.with_options(api_key=WRONG_KEY).models.list()


@behaviour
def abort() -> None:
    with frees_the_server(), chat_with(stream=True, max_tokens=LONG) as chunks:
        next(iter(chunks))
    with frees_the_server(), refused(openai.APITimeoutError, ""):
        client.with_options(timeout=1).chat.completions.create(
            model=MODEL, messages=ASKED, temperature=0, max_tokens=LONG
        )


if __name__ == "__main__":
    run(openai.__version__)
