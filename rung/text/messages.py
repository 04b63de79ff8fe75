"""Conversations: any of the usual spellings of messages in, one spelling out."""

import math
from typing import Any

from rung.errors import DataError
from rung.text.tools import calls_text, response_text, tools_text

Message = dict[str, Any]
"""{"role": one of ROLES, "content": text} and maybe "weight" (0 = not trained)."""

ROLES = ("system", "user", "assistant")

_ALIASES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
_CALLS = ("function_call", "tool_call")  # an assistant message that is a call, as JSON
_RESULTS = ("tool", "function", "observation", "ipython")  # what a call gave
_TOOL_KEYS = ("tool_calls", "function_call", "tool_call_id")
MESSAGE_KEYS = {"role", "from", "content", "value", "weight", "name", "id", *_TOOL_KEYS}
"""Keys of a message that are read, or say nothing that could be trained on."""


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def normalise_message(value: Any, *, where: str) -> Message:
    """One message of OpenAI (`role`, `content`) or ShareGPT (`from`, `value`) spelling.

    Tool calls and their results become text (rung/text/tools.py). DataError for an unknown role
    and for content that is no text.
    """
    if not isinstance(value, dict):
        raise DataError(f"{where}: a message is an object, found {type(value).__name__}")
    role, content = value.get("role", value.get("from")), value.get("content", value.get("value"))
    if role in _CALLS:
        message = assistant(calls_text(content, where=where))
    elif role in _RESULTS:
        message = user(response_text(_text(content, where=where)))
    elif isinstance(role, str) and role in _ALIASES:
        message = {"role": _ALIASES[role], "content": _content(value, content, where=where)}
    else:
        known = ", ".join(sorted([*_ALIASES, *_CALLS, *_RESULTS]))
        raise DataError(f"{where}: message role {role!r} is not supported; known: {known}")
    weight = value.get("weight")  # null, as some exports write it, is none
    if weight is not None:
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 <= weight < math.inf:
            raise DataError(f"{where}: message weight {weight!r} must be a number >= 0")
        if message["role"] == "assistant":
            message["weight"] = weight
        elif weight:
            raise DataError(
                f"{where}: weight {weight!r} on a message from {role!r}; only answers are trained"
            )
    return message


def _content(message: dict[str, Any], content: Any, *, where: str) -> str:
    """Text, and the calls of an assistant message after it."""
    calls = message.get("tool_calls") or message.get("function_call")
    if not calls:
        return _text(content, where=where)
    said = "" if content is None else _text(content, where=where)
    return "\n".join(part for part in (said, calls_text(calls, where=where)) if part.strip())


def _text(content: Any, *, where: str) -> str:
    """Text, or the text of OpenAI's parts [{"type": "text", "text": "..."}]."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise DataError(f"{where}: message content is {type(content).__name__}, it must be text")
    for part in content:
        if part.get("type", "text") not in ("text", "input_text", "output_text"):
            raise DataError(
                f"{where}: message content has a part of type {part.get('type')!r}; only text is "
                'read: {"type": "text", "text": "..."}'
            )
        if not isinstance(part.get("text"), str):
            raise DataError(f"{where}: a text part of message content has no text: {part!r:.60}")
    return "\n".join(part["text"] for part in content)


def normalise(value: Any, *, where: str, role: str = "user") -> list[Message]:
    """Messages of a list in either spelling, or one message of `role` where `value` is text.

    Neighbours of one role are joined where a tool had a part in one of them: results of calls
    made together, a call after the words that announce it.
    """
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, dict):
        return [normalise_message(value, where=where)]
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: messages are a non-empty list or text, found {value!r:.60}")
    messages: list[Message] = []
    by_tool = False
    for item in value:
        message = normalise_message(item, where=where)
        tool = _is_tool(item)
        if messages and messages[-1]["role"] == message["role"] and (tool or by_tool):
            _join(messages[-1], message, where=where)
        else:
            messages.append(message)
        by_tool = tool
    return messages


def _is_tool(item: dict[str, Any]) -> bool:
    role = item.get("role", item.get("from"))
    calls = item.get("tool_calls") or item.get("function_call")
    return role in _CALLS or role in _RESULTS or bool(calls)


def _join(before: Message, after: Message, *, where: str) -> None:
    if before.get("weight") != after.get("weight"):
        raise DataError(
            f"{where}: a tool call and the {before['role']} message beside it have different "
            "weights; give both the same, they become one message"
        )
    before["content"] = f"{before['content']}\n{after['content']}"


def with_system(system: Any, messages: list[Message], *, where: str) -> list[Message]:
    """`messages` with a system message in front, unless there is one or nothing to say."""
    if not system or messages[0]["role"] == "system":
        return messages
    if not isinstance(system, str):
        raise DataError(f"{where}: system is {type(system).__name__}, it must be text")
    return [{"role": "system", "content": system}, *messages]


def with_tools(tools: Any, messages: list[Message], *, where: str) -> list[Message]:
    """`messages` with the tools written into the system message, which is made where needed."""
    text = tools_text(tools, where=where)
    if not text:
        return messages
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": text}, *messages]
    first, *rest = messages
    both = "\n\n".join(part for part in (first["content"], text) if part.strip())
    return [{**first, "content": both}, *rest]


def check_turns(messages: list[Message], *, where: str) -> None:
    """System first if at all, then user and assistant by turns; else DataError."""
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    if not turns:
        raise DataError(f"{where}: a conversation needs at least one user message")
    for index, message in enumerate(turns):
        expected = ("user", "assistant")[index % 2]
        if message["role"] != expected:
            raise DataError(
                f"{where}: message {index + 1} is from {message['role']!r}, expected {expected!r} "
                "(user and assistant take turns, the user begins); merge or drop messages"
            )


def has_blank(messages: list[Message]) -> bool:
    """Whether a message has no text; such rows are dropped and counted, not refused."""
    return not all(message["content"].strip() for message in messages)


def is_broken(text: str) -> bool:
    """Whether a text has half a character (a lone surrogate), which no file can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
