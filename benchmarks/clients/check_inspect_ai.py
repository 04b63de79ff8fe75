"""inspect-ai: its provider for servers like OpenAI's, openai-api/SERVICE/MODEL."""

import asyncio
import importlib.metadata
from typing import Any

from behaviours import (
    CITIES,
    KEY,
    LONG,
    MODEL,
    NO_MODEL,
    QUESTION,
    ROOM,
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
from inspect_ai.model import (
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
    GenerateConfig,
    ResponseSchema,
    get_model,
)
from inspect_ai.tool import ToolInfo, ToolParams
from inspect_ai.util import JSONSchema

FIELDS = {"city": JSONSchema(type="string", enum=CITIES), "warm": JSONSchema(type="boolean")}
NEEDED = ["city", "warm"]
TOOL = ToolInfo(
    name="get_weather",
    description="The weather.",
    parameters=ToolParams(properties=FIELDS, required=NEEDED),
)
ASKED = [ChatMessageUser(content=QUESTION)]


def answer_of(
    asked: Any = QUESTION, *, name: str = MODEL, key: str = KEY, given: Any = None, **options: Any
) -> Any:
    config = GenerateConfig(**{"temperature": 0, "max_tokens": TOKENS, "max_retries": 0, **options})
    model = get_model(f"openai-api/rung/{name}", base_url=URL, api_key=key, **(given or {}))
    more = {}
    if tools := getattr(asked, "tools", None):
        more = {"tools": tools, "tool_choice": asked.choice}
        asked = asked.messages

    async def ask() -> Any:
        async with model:
            return await model.generate(asked, config=config, **more)

    return asyncio.run(ask())


class WithTools:
    """Messages, and what may be called."""

    def __init__(self, messages: list[Any], choice: str) -> None:
        self.messages, self.choice, self.tools = messages, choice, [TOOL]


@behaviour
def chat() -> None:
    answer = answer_of()
    assert answer.completion
    assert answer.stop_reason == "max_tokens"
    assert answer.usage.output_tokens == TOKENS


@behaviour
def stream() -> None:
    assert answer_of(given={"stream": True}).completion == answer_of().completion


@behaviour
def system() -> None:
    told = answer_of([ChatMessageSystem(content=SYSTEM), *ASKED])
    assert told.usage.input_tokens > answer_of().usage.input_tokens


@behaviour
def stop() -> None:
    end, before = stop_in(answer_of().completion)
    answer = answer_of(stop_seqs=[end])
    assert answer.completion == before
    assert answer.stop_reason == "stop"


@behaviour
def seed() -> None:
    said = [answer_of(temperature=1, seed=n).completion for n in (7, 7, 8)]
    assert said[0] == said[1] != said[2]


@behaviour
def logprobs() -> None:
    choice = answer_of(logprobs=True, top_logprobs=3).choices[0]
    assert "".join(token.token for token in choice.logprobs.content) == choice.message.text
    assert all(len(token.top_logprobs) == 3 for token in choice.logprobs.content)


@behaviour
def n() -> None:
    choices = answer_of(num_choices=3, temperature=1, seed=0).choices
    assert len({choice.message.text for choice in choices}) == 3


@behaviour
def tools() -> None:
    options = {"max_tokens": ROOM, "parallel_tool_calls": False}
    answer = answer_of(WithTools(ASKED, "any"), **options)
    (call,) = answer.message.tool_calls
    assert call.function == "get_weather"
    assert call.arguments["city"] in CITIES
    assert answer.stop_reason == "tool_calls"
    result = ChatMessageTool(content="Rain.", tool_call_id=call.id, function=call.function)
    told = [*ASKED, answer.message, result]
    assert answer_of(WithTools(told, "auto")).usage.output_tokens


@behaviour
def schema() -> None:
    form = JSONSchema(type="object", properties=FIELDS, required=NEEDED, additionalProperties=False)
    wanted = ResponseSchema(name="place", json_schema=form)
    assert is_place(answer_of(response_schema=wanted, max_tokens=ROOM).completion)


@behaviour
def unknown_model() -> None:
    with refused(Exception, "404"):
        answer_of(name=NO_MODEL)


@behaviour
def wrong_key() -> None:
    with refused(Exception, "401"):
        answer_of(key=WRONG_KEY)


@behaviour
def abort() -> None:
    with frees_the_server(), refused(Exception, "ime"):
        answer_of(max_tokens=LONG, attempt_timeout=1)


if __name__ == "__main__":
    run(importlib.metadata.version("inspect-ai"))
