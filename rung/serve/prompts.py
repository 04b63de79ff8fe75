"""Messages of a request into the ids that the model reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rung.engine.service import ServedModel
from rung.errors import DataError
from rung.serve.errors import ApiError, bad_value, unsupported
from rung.text.messages import Message, normalise_message, with_tools
from rung.tokens.chat import answer_ids, render
from rung.tokens.tokenizer import Tokenizer

Json = dict[str, Any]
_RESULTS = ("tool", "function")


@dataclass(frozen=True)
class ChatPrompt:
    """ids: int32 [n]. messages: as they were written, for the log."""

    ids: np.ndarray
    messages: list[Message]


def chat_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Json],
    *,
    functions: Sequence[Json] = (),
    generation_prompt: bool = True,
) -> ChatPrompt:
    """Ids of a conversation, ready for an answer; an assistant's message at the end is gone on
    with. ApiError names the message that is wrong."""
    try:
        tokenizer.chat  # noqa: B018 - says why where there is none
    except DataError as error:
        raise unsupported(
            f"{error}; /v1/completions goes on with a text", param="messages"
        ) from None
    told = read_messages(messages)
    try:
        told = with_tools([_plain(f) for f in functions], told, where="tools")
        if told[-1]["role"] != "assistant" or not generation_prompt:
            ids = render(tokenizer, told, generation_prompt=generation_prompt, where="messages").ids
            return ChatPrompt(ids, told)
        *before, begun = told
        opened = render(tokenizer, before, generation_prompt=True, where="messages").ids
        prefill = str(begun["content"])
        if prefill.strip():
            begin = answer_ids(tokenizer, prefill, stopped=False)
            return ChatPrompt(np.concatenate([opened, begin]), told)
        return ChatPrompt(opened, before)
    except DataError as error:
        raise bad_value(str(error), param="messages") from None


def read_messages(values: Sequence[Json]) -> list[Message]:
    """System first, then user and assistant by turns: messages of one role that follow each other
    are joined, as templates know turns only."""
    told: list[Message] = []
    joins_closely = False
    for number, value in enumerate(values):
        param = f"messages[{number}]"
        try:
            message = normalise_message(_tolerant(value), where=param)
        except DataError as error:
            raise bad_value(str(error), param=param) from None
        if message["role"] == "system" and any(m["role"] != "system" for m in told):
            raise unsupported(
                f"{param} is a system message after others; put all of them first", param=param
            )
        tool = bool(value.get("role") in _RESULTS or value.get("tool_calls"))
        if told and told[-1]["role"] == message["role"]:
            gap = "\n" if tool or joins_closely else "\n\n"  # tools: as they were trained
            both = [told[-1]["content"], message["content"]]
            told[-1]["content"] = gap.join(part for part in both if part)
        else:
            told.append(message)
        joins_closely = tool
    if values[-1].get("tool_calls"):
        raise bad_value(
            "the last message calls tools; what they gave must follow, in messages of role 'tool'",
            param=f"messages[{len(values) - 1}].tool_calls",
        )
    return told


def _tolerant(message: Json) -> Json:
    """An answer of ours as clients send it back: with nulls, or a refusal for content."""
    message = {key: value for key, value in message.items() if key != "weight"}
    if message.get("role") == "assistant" and message.get("content") is None:
        message["content"] = message.get("refusal") or ""
    return message


def _plain(function: Json) -> Json:
    """What the model is told of a function: `strict` is for us."""
    return {key: value for key, value in function.items() if key != "strict"}


def text_ids(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Ids int32 [n] of a text to go on with: the token that begins a text, and the text."""
    try:
        return np.append(np.int32(tokenizer.bos), tokenizer.encode(text))
    except DataError as error:
        raise bad_value(str(error), param="prompt") from None


def given_ids(tokenizer: Tokenizer, ids: Sequence[int], *, param: str) -> np.ndarray:
    """Ids int32 [n] that a client made, checked against the vocabulary."""
    if not ids:
        raise bad_value("no tokens; give at least one", param=param)
    wrong = next((i for i in ids if not 0 <= i < tokenizer.vocab_size), None)
    if wrong is not None:
        raise bad_value(
            f"token {wrong} is not in the vocabulary of {tokenizer.vocab_size:,}; the ids are of "
            "another tokenizer: send text, or the ids that /tokenize gives",
            param=param,
        )
    return np.array(ids, dtype=np.int32)


def check_length(ids: np.ndarray, model: ServedModel, *, param: str) -> None:
    """ApiError 400 where a prompt is longer than what the model reads."""
    if len(ids) > model.context:
        raise ApiError(
            400,
            f"This model's maximum context length is {model.context} tokens. However, your "
            f"{param} resulted in {len(ids)} tokens. Please reduce the length of the {param}.",
            code="context_length_exceeded",
            param=param,
        )
