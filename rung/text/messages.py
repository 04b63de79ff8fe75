"""Conversations: any of the usual spellings of messages in, one spelling out."""

from typing import Any

from rung.errors import DataError

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
    "bot": "assistant",
    "model": "assistant",
}


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def normalise_message(value: Any, *, where: str) -> Message:
    """One message of OpenAI (`role`, `content`) or ShareGPT (`from`, `value`) spelling.

    DataError for an unknown role (tool calls among them: not supported yet) or content that is
    not text.
    """
    if not isinstance(value, dict):
        raise DataError(f"{where}: a message is an object, found {type(value).__name__}")
    role, content = value.get("role", value.get("from")), value.get("content", value.get("value"))
    if role not in _ALIASES:
        known = ", ".join(sorted(_ALIASES))
        raise DataError(f"{where}: message role {role!r} is not supported; known: {known}")
    if not isinstance(content, str):
        raise DataError(f"{where}: message content is {type(content).__name__}, it must be text")
    message: Message = {"role": _ALIASES[role], "content": content}
    if "weight" in value:
        weight = value["weight"]
        if isinstance(weight, bool) or not isinstance(weight, int | float) or weight < 0:
            raise DataError(f"{where}: message weight {weight!r} must be a number >= 0")
        message["weight"] = weight
    return message


def normalise(value: Any, *, where: str, role: str = "user") -> list[Message]:
    """Messages of a list in either spelling, or one message of `role` where `value` is text."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, dict):
        return [normalise_message(value, where=where)]
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: messages are a non-empty list or text, found {value!r:.60}")
    return [normalise_message(item, where=where) for item in value]


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
