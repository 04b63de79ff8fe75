"""OpenAI's shapes: requests as they come, answers as they go. No logic.

Unknown fields are passed over, as clients send each other's; a wrong type is an error.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Json = dict[str, Any]


class Shape(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())


class StreamOptions(Shape):
    include_usage: bool | None = None


class Sampled(Shape):
    """What chat and completions share. The last block is not OpenAI's, but vLLM's; OpenAI has
    best_of for completions and response_format for chats only."""

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    stop_token_ids: list[int] | None = None
    return_token_ids: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    response_format: Json | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a last chunk of the stream says what it cost."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(Sampled):
    messages: Annotated[list[Json], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[Json] | None = None
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Json] | None = None
    function_call: str | Json | None = None
    modalities: list[str] | None = None
    audio: Json | None = None


class CompletionRequest(Sampled):
    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    suffix: str | None = None


class EmbeddingRequest(Shape):
    input: str | list[str] | list[int] | list[list[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None


class TokenizeRequest(Shape):
    """vLLM's: a text, or the messages of a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Json] | None = None
    tools: list[Json] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Shape):
    tokens: list[int]
    model: str | None = None


class FlagRequest(Shape):
    """Rung's own: a user's word on an answer, for the traffic log."""

    id: Annotated[str, Field(min_length=1, max_length=80)]
    reason: Annotated[str, Field(min_length=1, max_length=200)]
    comment: Annotated[str, Field(max_length=4000)] = ""


def usage(prompt_tokens: int, completion_tokens: int) -> Json:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def head(object: str, *, id: str, created: int, model: str, fingerprint: str) -> Json:
    """What an answer and all chunks of a stream have in common."""
    return {
        "id": id,
        "object": object,
        "created": created,
        "model": model,
        "system_fingerprint": fingerprint,
    }


def chat_choice(index: int, message: Json, *, logprobs: Json | None, finish: str) -> Json:
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}


def chat_message(content: str | None, calls: Sequence[Json]) -> Json:
    message: Json = {"role": "assistant", "content": content, "refusal": None}
    return {**message, "tool_calls": list(calls)} if calls else message


def chat_delta(
    index: int, delta: Json, *, logprobs: Json | None = None, finish: str | None = None
) -> Json:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def tool_call(id: str, name: str, arguments: str) -> Json:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def text_choice(index: int, text: str, *, logprobs: Json | None, finish: str | None) -> Json:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def model_card(
    name: str, *, created: int, context: int | None = None, kind: str = "", artefact: str = ""
) -> Json:
    """The last three are not OpenAI's."""
    card = {"id": name, "object": "model", "created": created, "owned_by": "rung"}
    return {**card, "max_model_len": context, "kind": kind, "artefact": artefact}


def listing(data: Sequence[Json], **more: Any) -> Json:
    return {"object": "list", "data": list(data), **more}


def embedding(index: int, value: list[float] | str) -> Json:
    return {"object": "embedding", "index": index, "embedding": value}


def event(value: Json) -> bytes:
    """One event of a stream. ASCII: U+2028 and its kin end a line for some readers."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n\n"


DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
