"""llm: models of its extra-openai-models.yaml, as its users add a server."""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
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
    URL,
    WRONG_KEY,
    behaviour,
    frees_the_server,
    is_place,
    refused,
    run,
    stop_in,
)

SETTINGS = Path(os.environ["LLM_USER_PATH"])
ENTRY = {"api_base": URL, "api_key_name": "rung", "supports_schema": True, "supports_tools": True}
ENTRIES = [
    {**ENTRY, "model_id": "served", "model_name": MODEL},
    {**ENTRY, "model_id": "served-text", "model_name": MODEL, "completion": True},
    {**ENTRY, "model_id": "nowhere", "model_name": NO_MODEL},
]
SETTINGS.mkdir(parents=True, exist_ok=True)
(SETTINGS / "extra-openai-models.yaml").write_text(json.dumps(ENTRIES))  # JSON is YAML
(SETTINGS / "keys.json").write_text(json.dumps({"rung": KEY}))

import llm  # noqa: E402 - it may read its settings when it is imported
import openai  # noqa: E402


def answer_of(name: str = "served", *, key: str | None = None, **options: Any) -> Any:
    more = {word: options.pop(word) for word in NO_OPTIONS if word in options}
    told = {"temperature": 0, "max_tokens": TOKENS, **options}
    return llm.get_model(name).prompt(QUESTION, key=key, **more, **told)


NO_OPTIONS = ("stream", "system", "schema", "tools")


def text_of(**options: Any) -> str:
    return answer_of(stream=False, **options).text()


@behaviour
def chat() -> None:
    answer = answer_of(stream=False)
    assert answer.text()
    assert answer.usage().output == TOKENS


@behaviour
def stream() -> None:
    assert "".join(answer_of(stream=True)) == text_of()


@behaviour
def usage() -> None:
    answer = answer_of(stream=True)
    assert answer.text()
    assert answer.usage().output == TOKENS


@behaviour
def system() -> None:
    told, plain = answer_of(stream=False, system=SYSTEM), answer_of(stream=False)
    assert told.text() != plain.text()
    assert told.usage().input > plain.usage().input


@behaviour
def stop() -> None:
    end, before = stop_in(text_of())
    assert text_of(stop=end) == before


@behaviour
def seed() -> None:
    assert text_of(temperature=1, seed=7) == text_of(temperature=1, seed=7)
    assert text_of(temperature=1, seed=7) != text_of(temperature=1, seed=8)


@behaviour
def tools() -> None:
    """It has no tool_choice, so a random model calls nothing: the call is put in by hand."""

    def get_weather(city: str) -> str:
        "The weather."
        return "Rain."

    tool = llm.Tool.function(get_weather)
    talk = llm.get_model("served").conversation(tools=[tool])
    first = talk.prompt(QUESTION, stream=False, temperature=0, max_tokens=TOKENS)
    assert first.text()
    assert first.usage().input > told_without_tools()
    first.add_tool_call(
        llm.ToolCall(name="get_weather", arguments={"city": "Oslo"}, tool_call_id="c1")
    )
    results = first.execute_tool_calls()
    last = talk.prompt(tool_results=results, stream=False, temperature=0, max_tokens=TOKENS)
    assert last.text()


def told_without_tools() -> int:
    answer = answer_of(stream=False)
    answer.text()
    return answer.usage().input


@behaviour
def schema() -> None:
    assert is_place(text_of(schema=SCHEMA, max_tokens=ROOM))
    assert is_place(answer_of(schema=SCHEMA, max_tokens=ROOM, stream=True).text())


@behaviour
def completions() -> None:
    assert text_of(name="served-text")
    assert "".join(answer_of("served-text", stream=True)) == text_of(name="served-text")


@behaviour
def unknown_model() -> None:
    with refused(openai.NotFoundError, "model_not_found"):
        text_of(name="nowhere")


@behaviour
def wrong_key() -> None:
    with refused(openai.AuthenticationError, "invalid_api_key"):
        text_of(key=WRONG_KEY)


@behaviour
def abort() -> None:
    """Ctrl-C, as its users stop it. Inside one process it leaves its stream to the garbage
    collector: closing the answer's iterator does not close the connection."""
    words = [sys.executable, "-m", "llm", "-m", "served", "-o", "max_tokens", str(LONG)]
    with (
        frees_the_server(),
        subprocess.Popen(
            [*words, "-o", "temperature", "0", QUESTION],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as running,
    ):
        assert running.stdout is not None
        assert running.stdout.read(1)
        running.send_signal(signal.SIGINT)


if __name__ == "__main__":
    run(importlib.metadata.version("llm"))
