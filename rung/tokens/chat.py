"""The one renderer of conversations: ids and loss weights together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rung.config import did_you_mean
from rung.errors import DataError
from rung.tokens.tokenizer import Tokenizer

Message = Mapping[str, Any]
"""{"role": "user", "content": "..."}, on an answer optionally "weight" (a number >= 0)."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as tokens. ids: int32 [n]. weights: float32 [n], 0 = not trained."""

    ids: np.ndarray
    weights: np.ndarray

    @property
    def num_supervised(self) -> int:
        """Tokens with a weight above 0."""
        return int((self.weights > 0).sum())


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    generation_prompt: bool = False,
    where: str = "conversation",
) -> Rendered:
    """bos, then for each message: the token of its role, the content, <|end|>.

    The weight is 1 (or the message's "weight") on the content and the <|end|> of an answer, and 0
    elsewhere. generation_prompt: the assistant's token follows, ready for an answer.
    With `answer_ids`: render(prompt, generation_prompt=True).ids + answer_ids(answer) are the ids
    of the whole conversation. Raises DataError, which begins with `where`.
    """
    check_messages(messages, where=where, history=generation_prompt)
    ids: list[np.ndarray] = [np.array([tokenizer.bos], dtype=np.int32)]
    weights: list[np.ndarray] = [np.zeros(1, dtype=np.float32)]
    encoded = tokenizer.encode_batch([message["content"] for message in messages])
    for message, content in zip(messages, encoded, strict=True):
        weight = _weight(message, at=where)
        ids.append(np.array([tokenizer.roles[message["role"]]], dtype=np.int32))
        weights.append(np.zeros(1, dtype=np.float32))
        ids.append(np.append(content, np.int32(tokenizer.end)))
        weights.append(np.full(len(content) + 1, weight, dtype=np.float32))
    if generation_prompt:
        ids.append(np.array([tokenizer.roles["assistant"]], dtype=np.int32))
        weights.append(np.zeros(1, dtype=np.float32))
    return Rendered(np.concatenate(ids), np.concatenate(weights))


def answer_ids(tokenizer: Tokenizer, text: str, *, stopped: bool = True) -> np.ndarray:
    """Ids of an answer that follows a generation prompt, int32: the text, and <|end|> if it
    stopped."""
    ids = tokenizer.encode(text)
    return np.append(ids, np.int32(tokenizer.end)) if stopped else ids


def check_messages(
    messages: Sequence[Message], *, where: str = "conversation", history: bool = False
) -> None:
    """DataError unless `messages` are at most one system message, then user and assistant in turn.

    Content must not be empty. An empty answer is refused as something to learn; it may stand as
    history (`history`, or its weight is 0), since a model can have said nothing.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not len(messages):
        raise DataError(f"{where}: messages must be a list with at least one message")
    turns = 0
    for number, message in enumerate(messages, start=1):
        at = f"{where}: message {number}"
        if not isinstance(message, Mapping):
            raise DataError(f"{at} is {message!r}, not an object with role and content")
        role, content = message.get("role"), message.get("content")
        if role == "system" and number == 1:
            pass
        elif role in ("user", "assistant"):
            expected = ("user", "assistant")[turns % 2]
            if role != expected:
                raise DataError(
                    f"{at} is of role {role!r} where {expected!r} is due; after an optional "
                    "system message user and assistant take turns: merge or drop messages"
                )
            turns += 1
        else:
            raise DataError(f"{at} {_role_problem(role)}")
        weight = _weight(message, at=at)
        if not isinstance(content, str):
            raise DataError(f"{at} ({role}) has content {content!r}, not a string")
        if not content.strip() and not (role == "assistant" and (history or weight == 0)):
            raise DataError(f"{at} ({role}) is empty; drop the row or give it text")


def _role_problem(role: Any) -> str:
    if role == "system":
        return "is a system message; only the first message can be one"
    return f"has role {role!r}{did_you_mean(str(role), ['system', 'user', 'assistant'])}"


def _weight(message: Message, *, at: str) -> float:
    default = 1.0 if message["role"] == "assistant" else 0.0
    weight = message.get("weight")
    if weight is None:  # absent, or null as some exports write it
        return default
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise DataError(f"{at} has weight {weight!r}, not a number")
    if not 0 <= weight < float("inf"):
        raise DataError(f"{at} has weight {weight!r}; it must be 0 or more, and finite")
    if weight and message["role"] != "assistant":
        raise DataError(
            f"{at} ({message['role']}) has weight {weight!r}; "
            "only answers are trained: leave it out"
        )
    return float(weight)
