"""Real clients against the real HTTP server: openai, langchain-openai, curl."""

import asyncio
import json
import math
import shutil
import subprocess
import threading

import openai
import pytest
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel
from serve_fake import ANSWER, LINES, serving, until

from rung.serve.state import Settings

KEY = "a-long-enough-key"
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    settings = Settings(api_keys=(KEY,))
    with serving(tmp_path_factory.mktemp("clients"), settings=settings) as (client, _):
        yield client.url + "/v1"


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as found:
        yield found


def test_openai_chat(client):
    answer = client.chat.completions.create(
        model="fake/chat", messages=MESSAGES, temperature=0, logprobs=True, top_logprobs=2
    )
    choice = answer.choices[0]
    assert choice.message.content == ANSWER
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert "".join(t.token for t in choice.logprobs.content) == ANSWER
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id.startswith("req_")


def test_openai_stream(client):
    options = {"include_usage": True}
    with client.chat.completions.create(
        model="fake/chat", messages=MESSAGES, temperature=0, stream=True, stream_options=options
    ) as stream:
        *chunks, last = stream
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == ANSWER
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.usage.completion_tokens > 5


def test_openai_stream_helper_joins_the_calls_of_tools(client):
    with client.chat.completions.stream(
        model="fake/chat",
        messages=[{"role": "user", "content": "TWO CALLS"}],
        tools=[TOOL],
        temperature=0,
    ) as stream:
        for _ in stream:
            pass
        message = stream.get_final_completion().choices[0].message
    assert [c.function.name for c in message.tool_calls] == ["get_weather"] * 2
    assert json.loads(message.tool_calls[1].function.arguments) == {"city": "Rome"}


def test_openai_completions(client):
    answer = client.completions.create(
        model="fake/chat", prompt=["a", "EURO"], temperature=0, max_tokens=99, echo=True, logprobs=1
    )
    assert [c.text for c in answer.choices] == ["a" + ANSWER, "EURO" + LINES["EURO"]]
    assert answer.choices[0].logprobs.token_logprobs[0] is None


def test_openai_embeddings_in_base64_as_it_asks_by_default(client):
    found = client.embeddings.create(model="fake/chat", input=["hello", "world"])
    assert [len(item.embedding) for item in found.data] == [8, 8]
    assert math.hypot(*found.data[0].embedding) == pytest.approx(1, abs=1e-5)
    plain = client.embeddings.create(model="fake/chat", input="hello", encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(found.data[0].embedding)


def test_openai_models(client):
    assert [model.id for model in client.models.list()] == ["fake/chat"]
    assert client.models.retrieve("fake/chat").owned_by == "rung"


def test_openai_errors_are_of_its_own_classes(client, url):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="none", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="fake/chat", messages=MESSAGES, temperature=9)
    assert bad.value.param == "temperature"
    with (
        openai.OpenAI(base_url=url, api_key="wrong-key-wrong") as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(
            model="fake/chat", messages=[{"role": "user", "content": "FAIL"}], temperature=0
        )
    with pytest.raises(openai.APIError, match="not finite"):
        list(
            client.chat.completions.create(
                model="fake/chat",
                messages=[{"role": "user", "content": "FAIL"}],
                temperature=0,
                stream=True,
            )
        )


def test_16_openai_comes_back_after_429(tmp_path):
    """The client waits as long as it is told and gets its answer, without a word of ours."""
    with (
        serving(tmp_path, pace=0.004, max_rows=1, max_queue=1) as (raw, service),
        openai.OpenAI(base_url=raw.url + "/v1", api_key="x", max_retries=8) as client,
    ):
        busy = raw.events("/v1/chat/completions", {"messages": MESSAGES})
        next(busy)
        waiting = threading.Thread(
            target=lambda: list(raw.events("/v1/chat/completions", {"messages": MESSAGES}))
        )
        waiting.start()
        until(lambda: service.stats().waiting or not waiting.is_alive())
        answer = client.chat.completions.create(model="fake/chat", messages=MESSAGES, temperature=0)
        assert answer.choices[0].message.content == ANSWER
        waiting.join()
        busy.close()
        assert service.stats().slots_used == 0


def test_openai_async(url):
    async def ask():
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY) as client:
            texts = []
            stream = await client.chat.completions.create(
                model="fake/chat", messages=MESSAGES, temperature=0, stream=True
            )
            async for chunk in stream:
                texts.append(chunk.choices[0].delta.content or "")
            return "".join(texts)

    assert asyncio.run(ask()) == ANSWER


@pytest.fixture
def known(url):
    """What LangChain's classes are given; their own HTTP client is never closed."""
    with openai.DefaultHttpxClient() as http:
        yield {"model": "fake/chat", "base_url": url, "api_key": KEY, "http_client": http}


def test_langchain_chat_and_stream(known):
    model = ChatOpenAI(**known, temperature=0, max_tokens=50)
    answer = model.invoke("hello")
    assert answer.content == ANSWER
    assert answer.usage_metadata["output_tokens"] > 5
    assert answer.response_metadata["finish_reason"] == "stop"
    parts = list(ChatOpenAI(**known, temperature=0, stream_usage=True).stream("hello"))
    assert "".join(part.content for part in parts) == ANSWER
    assert any(part.usage_metadata for part in parts)
    batch = model.batch(["hello", "EURO"])
    assert [answer.content for answer in batch] == [ANSWER, LINES["EURO"]]


def test_langchain_tools(known):
    bound = ChatOpenAI(**known, temperature=0).bind_tools([TOOL])
    call = bound.invoke("ONE CALL").tool_calls[0]
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Oslo"})
    whole = None
    for part in bound.stream("ONE CALL"):
        whole = part if whole is None else whole + part
    assert whole.tool_calls[0]["args"] == {"city": "Oslo"}


class Weather(BaseModel):
    city: str


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_langchain_structured_output(known, method):
    model = ChatOpenAI(**known, temperature=0)
    found = model.with_structured_output(Weather, method=method, include_raw=True)
    answer = found.invoke("hello")
    if method == "json_mode":  # any object: whether it has the field is the model's affair
        assert isinstance(json.loads(answer["raw"].content), dict)
    else:
        assert isinstance(answer["parsed"], Weather), answer


def test_langchain_completions_and_embeddings(known):
    text = OpenAI(**known, temperature=0, max_tokens=99)
    assert text.invoke("hello") == ANSWER
    vectors = OpenAIEmbeddings(**known, check_embedding_ctx_length=False)
    assert len(vectors.embed_query("hello")) == 8


def test_langchain_is_told_to_send_texts_for_embeddings(known, monkeypatch):
    """By default it sends ids of OpenAI's vocabulary (here by hand: its files are not here)."""
    from langchain_openai.embeddings.base import OpenAIEmbeddings as Embeddings

    monkeypatch.setattr(
        Embeddings, "_tokenize", lambda self, texts, size: ([0], [[15339, 1917]], [0], [2])
    )
    vectors = OpenAIEmbeddings(**known)
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        vectors.embed_query("hello world")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(url):
    def curl(path, *words):
        return subprocess.run(
            ["curl", "-sSN", url + path, "-H", f"Authorization: Bearer {KEY}", *words],
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout  # fmt: skip

    json_type = ("-H", "Content-Type: application/json")
    body = {"model": "fake/chat", "messages": MESSAGES, "temperature": 0}
    answer = json.loads(curl("/chat/completions", *json_type, "-d", json.dumps(body)))
    assert answer["choices"][0]["message"]["content"] == ANSWER
    said = curl("/chat/completions", *json_type, "-d", json.dumps({**body, "stream": True}))
    assert said.endswith("data: [DONE]\n\n")
    assert json.loads(curl("/models"))["data"][0]["id"] == "fake/chat"
    forgot = json.loads(curl("/chat/completions", "-d", json.dumps(body)))
    assert "Content-Type" in forgot["error"]["message"]
