"""curl: what a shell script sends and sees."""

import json
import math
import subprocess
from typing import Any

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

ASKED = [{"role": "user", "content": QUESTION}]


def curl(path: str, body: Any = None, *words: str, key: str = KEY) -> str:
    """What is printed, the status in a last line."""
    sent = ["-H", "Content-Type: application/json", "-d", json.dumps(body)] if body else []
    bearer = ["-H", f"Authorization: Bearer {key}"]
    done = subprocess.run(
        ["curl", "-sSN", "-w", "\n%{http_code}", *bearer, URL + path, *sent, *words],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def answered(path: str, body: Any = None) -> Any:
    text, _, status = curl(path, body).rpartition("\n")
    assert status == "200", text
    return json.loads(text)


def error_of(path: str, body: Any = None, *, key: str = KEY) -> tuple[str, str]:
    """(status, code of the error)."""
    text, _, status = curl(path, body, key=key).rpartition("\n")
    return status, json.loads(text)["error"]["code"]


def chat_with(messages: list[Any] = ASKED, **options: Any) -> Any:
    return answered("/chat/completions", body_of(messages=messages, **options))


def body_of(**options: Any) -> dict[str, Any]:
    return {
        "model": MODEL, "messages": ASKED, "max_tokens": TOKENS, "temperature": 0, **options
    }  # fmt: skip


def text_of(**options: Any) -> str:
    return chat_with(**options)["choices"][0]["message"]["content"]


def events(**options: Any) -> list[Any]:
    text, _, _ = curl("/chat/completions", body_of(stream=True, **options)).rpartition("\n")
    *lines, done = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert done == "[DONE]"
    return [json.loads(line) for line in lines]


@behaviour
def models() -> None:
    assert [model["id"] for model in answered("/models")["data"]] == [MODEL]


@behaviour
def chat() -> None:
    answer = chat_with()
    assert answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] == TOKENS


@behaviour
def stream() -> None:
    deltas = [event["choices"][0]["delta"] for event in events()]
    assert "".join(delta.get("content") or "" for delta in deltas) == text_of()


@behaviour
def usage() -> None:
    *_, last = events(stream_options={"include_usage": True})
    assert last["usage"] == chat_with()["usage"]


@behaviour
def system() -> None:
    told = chat_with([{"role": "system", "content": SYSTEM}, *ASKED])
    assert told["usage"]["prompt_tokens"] > chat_with()["usage"]["prompt_tokens"]


@behaviour
def stop() -> None:
    end, before = stop_in(text_of())
    assert text_of(stop=end) == before


@behaviour
def seed() -> None:
    assert text_of(temperature=1, seed=7) == text_of(temperature=1, seed=7)
    assert text_of(temperature=1, seed=7) != text_of(temperature=1, seed=8)


@behaviour
def logprobs() -> None:
    choice = chat_with(logprobs=True, top_logprobs=3)["choices"][0]
    tokens = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == choice["message"]["content"]
    assert all(token["logprob"] <= 0 and len(token["top_logprobs"]) == 3 for token in tokens)


@behaviour
def n() -> None:
    assert [choice["index"] for choice in chat_with(n=3)["choices"]] == [0, 1, 2]


@behaviour
def tools() -> None:
    options = {"tool_choice": "required", "parallel_tool_calls": False, "max_tokens": ROOM}
    message = chat_with(tools=[TOOL], **options)["choices"][0]["message"]
    (call,) = message["tool_calls"]
    assert is_place(call["function"]["arguments"])
    result = {"role": "tool", "tool_call_id": call["id"], "content": "Rain."}
    assert chat_with([*ASKED, message, result], tools=[TOOL])["choices"][0]["message"]["content"]


@behaviour
def schema() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
    assert is_place(text_of(response_format=form, max_tokens=ROOM))


@behaviour
def embeddings() -> None:
    (found,) = answered("/embeddings", {"model": MODEL, "input": "one"})["data"]
    assert math.isclose(math.hypot(*found["embedding"]), 1, abs_tol=1e-5)


@behaviour
def completions() -> None:
    body = {"model": MODEL, "prompt": ["a", "b"], "max_tokens": TOKENS}
    assert all(choice["text"] for choice in answered("/completions", body)["choices"])


@behaviour
def echo() -> None:
    body = {"model": MODEL, "prompt": QUESTION, "max_tokens": 0, "echo": True, "logprobs": 1}
    (choice,) = answered("/completions", body)["choices"]
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"] == QUESTION


@behaviour
def unknown_model() -> None:
    assert error_of("/chat/completions", body_of(model=NO_MODEL)) == ("404", "model_not_found")


@behaviour
def wrong_key() -> None:
    assert error_of("/models", key=WRONG_KEY) == ("401", "invalid_api_key")


@behaviour
def abort() -> None:
    with frees_the_server(), refused(AssertionError, "timed out"):
        curl("/chat/completions", body_of(stream=True, max_tokens=LONG), "--max-time", "1")


if __name__ == "__main__":
    said = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True)
    run(said.stdout.split()[1])
