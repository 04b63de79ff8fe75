"""langchain-openai: its chat model, its text model and its embeddings."""

import math
from typing import Any

import openai
from behaviours import (
    CITIES,
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
    refused,
    run,
    stop_in,
)
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings, __version__

KNOWN = {"model": MODEL, "base_url": URL, "api_key": KEY, "max_retries": 0}


def chat_model(**options: Any) -> ChatOpenAI:
    return ChatOpenAI(**{**KNOWN, "temperature": 0, "max_tokens": TOKENS, **options})


def text_of(**options: Any) -> str:
    return str(chat_model(**options).invoke(QUESTION).content)


@behaviour
def chat() -> None:
    answer = chat_model().invoke(QUESTION)
    assert answer.content
    assert answer.response_metadata["finish_reason"] == "length"
    assert answer.usage_metadata["output_tokens"] == TOKENS


@behaviour
def stream() -> None:
    assert "".join(str(part.content) for part in chat_model().stream(QUESTION)) == text_of()


@behaviour
def usage() -> None:
    parts = list(chat_model(stream_usage=True).stream(QUESTION))
    told = [part.usage_metadata for part in parts if part.usage_metadata]
    assert [one["output_tokens"] for one in told] == [TOKENS]


@behaviour
def system() -> None:
    told = chat_model().invoke([SystemMessage(SYSTEM), HumanMessage(QUESTION)])
    plain = chat_model().invoke(QUESTION)
    assert told.usage_metadata["input_tokens"] > plain.usage_metadata["input_tokens"]


@behaviour
def stop() -> None:
    end, before = stop_in(text_of())
    answer = chat_model().invoke(QUESTION, stop=[end])
    assert answer.content == before
    assert answer.response_metadata["finish_reason"] == "stop"


@behaviour
def seed() -> None:
    assert text_of(temperature=1, seed=7) == text_of(temperature=1, seed=7)
    assert text_of(temperature=1, seed=7) != text_of(temperature=1, seed=8)


@behaviour
def logprobs() -> None:
    answer = chat_model(logprobs=True, top_logprobs=3).invoke(QUESTION)
    tokens = answer.response_metadata["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == answer.content
    assert all(token["logprob"] <= 0 and len(token["top_logprobs"]) == 3 for token in tokens)


@behaviour
def n() -> None:
    model = chat_model(n=3, temperature=1, seed=0)
    (answers,) = model.generate([[HumanMessage(QUESTION)]]).generations
    assert len({answer.text for answer in answers}) == 3


@behaviour
def tools() -> None:
    model = chat_model(max_tokens=ROOM)
    forced = model.bind_tools([TOOL], tool_choice="required", parallel_tool_calls=False)
    answer = forced.invoke(QUESTION)
    (call,) = answer.tool_calls
    assert call["name"] == "get_weather"
    assert call["args"]["city"] in CITIES
    result = ToolMessage("Rain.", tool_call_id=call["id"])
    told = [HumanMessage(QUESTION), answer, result]
    assert chat_model().bind_tools([TOOL]).invoke(told).content
    whole: Any = None
    for part in forced.stream(QUESTION):
        whole = part if whole is None else whole + part
    assert whole.tool_calls[0]["args"] == call["args"]


@behaviour
def schema() -> None:
    titled = {"title": "place", "description": "A place.", **SCHEMA}
    model = chat_model(max_tokens=ROOM)
    for method in ("json_schema", "function_calling"):
        found = model.with_structured_output(titled, method=method).invoke(QUESTION)
        assert found["city"] in CITIES, method


@behaviour
def embeddings() -> None:
    vectors = OpenAIEmbeddings(**KNOWN, check_embedding_ctx_length=False)
    found = vectors.embed_documents(["one", "two"])
    assert all(math.isclose(math.hypot(*vector), 1, abs_tol=1e-5) for vector in found)


@behaviour
def completions() -> None:
    model = OpenAI(**KNOWN, temperature=0, max_tokens=TOKENS)
    assert model.invoke(QUESTION)
    assert "".join(model.stream(QUESTION)) == model.invoke(QUESTION)


@behaviour
def unknown_model() -> None:
    with refused(openai.NotFoundError, "model_not_found"):
        text_of(model=NO_MODEL)


@behaviour
def wrong_key() -> None:
    with refused(openai.AuthenticationError, "invalid_api_key"):
        text_of(api_key=WRONG_KEY)


@behaviour
def abort() -> None:
    with frees_the_server():
        parts = chat_model(max_tokens=LONG).stream(QUESTION)
        next(parts)
        parts.close()


if __name__ == "__main__":
    run(__version__)
