"""The one renderer of conversations: ids and loss weights together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rung.config import did_you_mean
from rung.errors import DataError
from rung.tokens.template import Item, Message
from rung.tokens.tokenizer import Tokenizer


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
    """The tokenizer's chat template over `messages`, ids and loss weights together.

    The weight is 1 (or the message's "weight") on an answer and on the token that ends it, and 0
    elsewhere. generation_prompt: what opens an answer follows, ready for one.
    With `answer_ids`: render(prompt, generation_prompt=True).ids + answer_ids(answer) are the ids
    of the whole conversation. Raises DataError, which begins with `where`.
    """
    check_messages(messages, where=where, history=generation_prompt)
    trained = {
        message_id: _weight(message, at=where) for message_id, message in enumerate(messages)
    }
    try:
        template = tokenizer.chat
        prepared = template.prepare(messages)
        roles = tuple(str(message["role"]) for message in prepared)
        layout = template.layout(roles, generation_prompt=generation_prompt)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    shift = len(messages) - len(prepared)  # a system message went into the next
    contents = [str(message["content"]) for message in prepared]
    encoded = _encode(tokenizer, layout.items, contents)
    ids: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    for number, (item, own) in enumerate(zip(layout.items, encoded, strict=True)):
        weight = 0.0 if item.answer is None else trained[item.answer + shift]
        following = layout.items[number + 1].answer if number + 1 < len(layout.items) else None
        if item.answer is not None and following != item.answer and not layout.ended[item.answer]:
            own = np.append(own, np.int32(tokenizer.stop_ids[0]))
        ids.append(own)
        weights.append(np.full(len(own), weight, dtype=np.float32))
    return Rendered(np.concatenate(ids), np.concatenate(weights))


def answer_ids(tokenizer: Tokenizer, text: str, *, stopped: bool = True) -> np.ndarray:
    """Ids of an answer that follows a generation prompt, int32: the text, and what ends an answer
    if it stopped."""
    template = tokenizer.chat
    prepared = template.prepare([_ASK, {"role": "assistant", "content": text}])
    layout = template.layout(("user", "assistant"), generation_prompt=False)
    items = [item for item in layout.items if item.answer is not None]
    if not stopped:
        last = next(i for i, item in enumerate(items) if 1 in item.parts)
        cut = items[last].parts[: items[last].parts.index(1) + 1]
        items = [*items[:last], Item("", cut, items[last].after, 1)]
    ids = np.concatenate(_encode(tokenizer, items, ["", str(prepared[1]["content"])]))
    if stopped and not layout.ended[1]:
        ids = np.append(ids, np.int32(tokenizer.stop_ids[0]))
    return ids


_ASK = {"role": "user", "content": "?"}


def _encode(
    tokenizer: Tokenizer, items: Sequence[Item], contents: Sequence[str]
) -> list[np.ndarray]:
    """Ids of each item."""
    texts = ["".join(contents[p] if isinstance(p, int) else p for p in i.parts) for i in items]
    plain = [number for number, item in enumerate(items) if not item.special]
    encoded = tokenizer.encode_parts([(items[n].after, texts[n]) for n in plain])
    found = dict(zip(plain, encoded, strict=True))
    return [
        np.array([tokenizer.special(item.special)], dtype=np.int32) if item.special else found[n]
        for n, item in enumerate(items)
    ]


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
