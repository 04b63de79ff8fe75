"""Trees of messages (OpenAssistant): a prompt, replies that people ranked, their replies ...

{"message_tree_id": "...", "prompt": {"role": "prompter", "text": "Hi", "replies": [
 {"role": "assistant", "text": "Hello!", "rank": 0, "replies": [...]},
 {"role": "assistant", "text": "Go.", "rank": 1, "replies": []}]}}
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rung.errors import DataError
from rung.text.messages import Message

_ROLES = {"prompter": "user", "assistant": "assistant"}
EXAMPLE = (
    '{"prompt": {"role": "prompter", "text": "Hi", "replies": [{"role": "assistant", "text": '
    '"Hello!", "rank": 0, "replies": []}, {"role": "assistant", "text": "Go.", "rank": 1}]}}'
)


@dataclass(frozen=True)
class RankedReplies:
    """A conversation up to a user's message, and the answers that people ranked. Lower is better;
    equal ranks do not occur in this format."""

    prompt: list[Message]
    answers: list[str]
    ranks: list[int]


def is_tree(row: dict[str, Any]) -> bool:
    prompt = row.get("prompt")
    return isinstance(prompt, dict) and "text" in prompt and "replies" in prompt


def ranked_replies(row: dict[str, Any], *, where: str) -> list[RankedReplies]:
    """Every place in the tree with at least two ranked answers, top down."""
    found = []
    for path, node in _walk(row["prompt"], [], where=where):
        if path[-1]["role"] != "user":
            continue
        ranked = [
            (rank, _message(reply, where=where)["content"])
            for reply in _replies(node, where=where)
            if (rank := _rank(reply, where=where)) is not None
        ]
        if len(ranked) > 1:
            ranked.sort(key=lambda pair: pair[0])
            found.append(RankedReplies(path, [a for _, a in ranked], [r for r, _ in ranked]))
    return found


def best_path(row: dict[str, Any], *, where: str) -> list[Message]:
    """The conversation along the best-ranked replies (the first where none is ranked), up to its
    last answer; only the prompt where nobody answered."""
    node, path = row["prompt"], [_message(row["prompt"], where=where)]
    while replies := _replies(node, where=where):
        ranks = [_rank(reply, where=where) for reply in replies]
        best = min(
            range(len(replies)), key=lambda i: (ranks[i] is None, ranks[i] if ranks[i] else 0, i)
        )
        node = replies[best]
        path.append(_message(node, where=where))
    return path[:-1] if path[-1]["role"] == "user" and len(path) > 1 else path


def _walk(
    node: Any, above: list[Message], *, where: str
) -> Iterator[tuple[list[Message], dict[str, Any]]]:
    path = [*above, _message(node, where=where)]
    yield path, node
    for reply in _replies(node, where=where):
        yield from _walk(reply, path, where=where)


def _message(node: Any, *, where: str) -> Message:
    if not isinstance(node, dict) or not isinstance(node.get("text"), str):
        raise DataError(
            f"{where}: a message of a tree has no text: {node!r:.80}; for example {EXAMPLE}"
        )
    role = node.get("role", "prompter")
    if role not in _ROLES:
        raise DataError(f"{where}: message role {role!r} in a tree; known: {', '.join(_ROLES)}")
    return {"role": _ROLES[role], "content": node["text"]}


def _replies(node: dict[str, Any], *, where: str) -> list[dict[str, Any]]:
    replies = node.get("replies") or []
    if not isinstance(replies, list):
        raise DataError(f"{where}: replies are a list, found {type(replies).__name__}")
    for reply in replies:
        _message(reply, where=where)
    return [reply for reply in replies if not reply.get("deleted")]


def _rank(node: dict[str, Any], *, where: str) -> int | None:
    rank = node.get("rank")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int)):
        raise DataError(f"{where}: rank {rank!r} of a reply is no whole number")
    return rank
