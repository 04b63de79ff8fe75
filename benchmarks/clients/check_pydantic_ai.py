"""pydantic-ai: its agent, and its model where the agent hides what is asked."""

import asyncio
import importlib.metadata
import math
from collections.abc import Awaitable, Callable
from typing import Any, Literal

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
    URL,
    WRONG_KEY,
    behaviour,
    frees_the_server,
    is_place,
    refused,
    run,
    stop_in,
)
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.direct import model_request, model_request_stream
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelRequest, ToolCallPart, ToolReturnPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.tools import ToolDefinition

ASKED = [ModelRequest.user_text_prompt(QUESTION)]
TOOL = ToolDefinition(name="get_weather", description="The weather.", parameters_json_schema=SCHEMA)


class Place(BaseModel):
    city: Literal["Oslo", "Rome"]
    warm: bool


def model_of(name: str = MODEL, key: str = KEY) -> OpenAIChatModel:
    client = AsyncOpenAI(base_url=URL, api_key=key, max_retries=0)
    return OpenAIChatModel(name, provider=OpenAIProvider(openai_client=client))


def settings_of(**options: Any) -> Any:
    return {"temperature": 0, "max_tokens": TOKENS, **options}


def answer_of(messages: Any = ASKED, parameters: Any = None, **options: Any) -> Any:
    settings = settings_of(**options)
    return asyncio.run(
        model_request(
            model_of(), messages, model_settings=settings, model_request_parameters=parameters
        )
    )


def text_of(**options: Any) -> str:
    return answer_of(**options).text


def in_loop(check: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def run_it() -> None:
        asyncio.run(check())

    run_it.__name__ = check.__name__
    return run_it


@behaviour
@in_loop
async def chat() -> None:
    answer = await Agent(model_of(), model_settings=settings_of()).run(QUESTION)
    assert answer.output
    assert answer.all_messages()[-1].finish_reason == "length"


@behaviour
@in_loop
async def stream() -> None:
    agent = Agent(model_of(), model_settings=settings_of())
    async with agent.run_stream(QUESTION) as answer:
        parts = [part async for part in answer.stream_text(delta=True, debounce_by=None)]
    assert "".join(parts) == (await agent.run(QUESTION)).output


@behaviour
@in_loop
async def usage() -> None:
    async with model_request_stream(model_of(), ASKED, model_settings=settings_of()) as answer:
        async for _ in answer:
            pass
    told = answer.usage if not callable(answer.usage) else answer.usage()
    assert told.output_tokens == TOKENS


@behaviour
@in_loop
async def system() -> None:
    plain = await Agent(model_of(), model_settings=settings_of()).run(QUESTION)
    told = await Agent(model_of(), instructions=SYSTEM, model_settings=settings_of()).run(QUESTION)
    sizes = [answer.all_messages()[-1].usage.input_tokens for answer in (plain, told)]
    assert sizes[0] < sizes[1]


@behaviour
def stop() -> None:
    end, before = stop_in(text_of())
    answer = answer_of(stop_sequences=[end])
    assert answer.text == before
    assert answer.finish_reason == "stop"


@behaviour
def seed() -> None:
    assert text_of(temperature=1, seed=7) == text_of(temperature=1, seed=7)
    assert text_of(temperature=1, seed=7) != text_of(temperature=1, seed=8)


@behaviour
def logprobs() -> None:
    answer = answer_of(openai_logprobs=True, openai_top_logprobs=3)
    tokens = answer.provider_details["logprobs"]
    assert "".join(token["token"] for token in tokens) == answer.text


@behaviour
def tools() -> None:
    forced = ModelRequestParameters(function_tools=[TOOL], allow_text_output=False)
    answer = answer_of(parameters=forced, parallel_tool_calls=False, max_tokens=ROOM)
    (call,) = [part for part in answer.parts if isinstance(part, ToolCallPart)]
    assert is_place(call.args_as_json_str())
    result = ToolReturnPart(call.tool_name, "Rain.", call.tool_call_id)
    told = [*ASKED, answer, ModelRequest([result])]
    assert answer_of(told, ModelRequestParameters(function_tools=[TOOL])).text


@behaviour
@in_loop
async def schema() -> None:
    settings = settings_of(max_tokens=ROOM, parallel_tool_calls=False)
    for form in (NativeOutput(Place), ToolOutput(Place)):
        agent = Agent(model_of(), output_type=form, model_settings=settings)
        assert isinstance((await agent.run(QUESTION)).output, Place)


@behaviour
@in_loop
async def embeddings() -> None:
    from pydantic_ai import Embedder
    from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel

    provider = OpenAIProvider(base_url=URL, api_key=KEY)
    found = await Embedder(OpenAIEmbeddingModel(MODEL, provider=provider)).embed_query("one")
    assert math.isclose(math.hypot(*found.embeddings[0]), 1, abs_tol=1e-5)


@behaviour
@in_loop
async def unknown_model() -> None:
    with refused(ModelHTTPError, "model_not_found"):
        await Agent(model_of(NO_MODEL)).run(QUESTION)


@behaviour
@in_loop
async def wrong_key() -> None:
    with refused(ModelHTTPError, "401"):
        await Agent(model_of(key=WRONG_KEY)).run(QUESTION)


@behaviour
def abort() -> None:
    async def leave() -> None:
        settings = settings_of(max_tokens=LONG)
        async with model_request_stream(model_of(), ASKED, model_settings=settings) as answer:
            async for _ in answer:
                break

    with frees_the_server():
        asyncio.run(leave())


if __name__ == "__main__":
    run(importlib.metadata.version("pydantic-ai-slim"))
