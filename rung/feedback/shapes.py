"""The shapes in which preferences come: pairs with or without their prompt, rankings, ratings,
and answers with a label of their own (KTO)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rung.errors import DataError
from rung.feedback.schema import (
    check_labels,
    check_margin,
    check_prompt,
    check_weight,
    parse_ranking,
)
from rung.text.messages import Message, normalise, user
from rung.text.rows import Row, Shape

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ ]?")


@dataclass(frozen=True)
class Judged:
    """One judgement as read: ranks 1 is best. drop: why it cannot be used, or ""."""

    prompt: list[Message]
    answers: list[str]
    ranks: list[int]
    flags: list[list[str]]
    ratings: list[float] | None = None
    annotator: str = ""
    drop: str = ""
    labels: list[bool | None] | None = None
    margin: float | None = None
    weight: float = 1.0


def _pair(prompt: list[Message], chosen: str, rejected: str, row: Row) -> Judged:
    where = row["where"]
    check_prompt(prompt, where=where)
    return Judged(
        prompt,
        [chosen, rejected],
        [1, 2],
        [[], []],
        annotator=_annotator(row),
        margin=check_margin(row.get("margin"), num=2, where=where),
        weight=check_weight(row.get("weight"), where=where),
    )


def _annotator(row: Row) -> str:
    return str(row.get("annotator") or "")


def _read_explicit(row: Row) -> Judged:
    """TRL, explicit prompt: {"prompt", "chosen", "rejected"}, each text or messages."""
    prompt = normalise(row["prompt"], where=row["where"])
    return _pair(prompt, _answer(row, "chosen"), _answer(row, "rejected"), row)


def _read_alpaca(row: Row) -> Judged:
    """LLaMA-Factory: {"instruction", "input", "chosen", "rejected"}."""
    return _pair([_instruction(row)], _answer(row, "chosen"), _answer(row, "rejected"), row)


def _instruction(row: Row) -> Message:
    if not isinstance(row["instruction"], str):
        raise DataError(f"{row['where']}: instruction must be text")
    given = row.get("input") or ""
    return user(row["instruction"] + (f"\n{given}" if given else ""))


def _read_sharegpt(row: Row) -> Judged:
    """ShareGPT ranking: {"conversations": [...], "chosen": {from, value}, "rejected": {...}}."""
    prompt = normalise(row["conversations"], where=row["where"])
    return _pair(prompt, _answer(row, "chosen"), _answer(row, "rejected"), row)


def _read_openai(row: Row) -> Judged:
    """OpenAI: {"input": {"messages": [...]}, "preferred_output", "non_preferred_output"}."""
    given = row["input"]
    messages = given.get("messages") if isinstance(given, dict) else given
    prompt = normalise(messages, where=row["where"])
    chosen, rejected = _answer(row, "preferred_output"), _answer(row, "non_preferred_output")
    return _pair(prompt, chosen, rejected, row)


def _read_implicit(row: Row) -> Judged:
    """Whole conversations in `chosen` and `rejected`; the prompt is what they share.

    Text is read by its "Human:" and "Assistant:" turns (HH-RLHF), else by messages. Conversations
    that part before their last message are not judgements of one answer: they are dropped.
    """
    where = row["where"]
    chosen, rejected = _conversation(row, "chosen"), _conversation(row, "rejected")
    prompt = chosen[:-1]
    if prompt != rejected[:-1]:
        return Judged([], [], [], [], drop="part_before_last_message")
    for side in (chosen, rejected):
        if side[-1]["role"] != "assistant":
            return Judged([], [], [], [], drop="no_answer_at_the_end")
    check_prompt(prompt, where=where)
    return _pair(prompt, chosen[-1]["content"], rejected[-1]["content"], row)


def _read_ranking(row: Row) -> Judged:
    """Rung's own: {"prompt", "answers", "ranks"} and maybe flags, ratings, annotator."""
    record = parse_ranking({"id": "", "kind": "human", **_with_prompt(row)}, where=row["where"])
    return Judged(
        list(record.prompt),
        list(record.answers),
        dense(record.ranks),
        [list(flags) for flags in record.flags],
        None if record.ratings is None else list(record.ratings),
        _annotator(row),
        labels=None if record.labels is None else list(record.labels),
        margin=record.margin,
        weight=record.weight,
    )


def _read_ratings(row: Row) -> Judged:
    """{"prompt", "answers", "ratings"}: a higher rating ranks better, equal ones tie."""
    ratings = row["ratings"]
    if not isinstance(ratings, list) or not all(
        isinstance(r, int | float) and not isinstance(r, bool) for r in ratings
    ):
        raise DataError(f"{row['where']}: ratings are a list of numbers, found {ratings!r:.60}")
    return _read_ranking({**row, "ranks": dense([-rating for rating in ratings])})


def _read_labels(row: Row) -> Judged:
    """{"prompt", "answers", "labels"}: desirable ones rank before those of which nothing is said,
    and these before undesirable ones."""
    labels = row["labels"]
    if not isinstance(labels, list):
        raise DataError(f"{row['where']}: labels are a list, one per answer, found {labels!r:.60}")
    check_labels(labels, where=row["where"])
    order = {True: 0, None: 1, False: 2}
    return _read_ranking({**row, "ranks": dense([order[label] for label in labels])})


def _labelled(prompt: list[Message], answer: str, row: Row) -> Judged:
    """One answer with its `label`, which LLaMA-Factory calls `kto_tag`."""
    where = row["where"]
    check_prompt(prompt, where=where)
    key = "label" if "label" in row else "kto_tag"
    label = row[key]
    if label not in (True, False):  # 1 and 0, too
        raise DataError(f"{where}: {key} is true (desirable) or false, found {label!r:.60}")
    return Judged(
        prompt,
        [answer],
        [1],
        [[]],
        annotator=_annotator(row),
        labels=[bool(label)],
        weight=check_weight(row.get("weight"), where=where),
    )


def _read_labelled(row: Row) -> Judged:
    """TRL, explicit prompt: {"prompt", "completion", "label"}, each text or messages."""
    prompt = normalise(row["prompt"], where=row["where"])
    return _labelled(prompt, _answer(row, "completion"), row)


def _read_labelled_alpaca(row: Row) -> Judged:
    """LLaMA-Factory: {"instruction", "input", "output", "kto_tag"}."""
    return _labelled([_instruction(row)], _answer(row, "output"), row)


def _labelled_conversation(row: Row, key: str) -> Judged:
    """A whole conversation whose last message is judged."""
    messages = _conversation(row, key)
    if messages[-1]["role"] != "assistant":
        return Judged([], [], [], [], drop="no_answer_at_the_end")
    return _labelled(messages[:-1], messages[-1]["content"], row)


def _read_labelled_messages(row: Row) -> Judged:
    return _labelled_conversation(row, "messages")


def _read_labelled_sharegpt(row: Row) -> Judged:
    return _labelled_conversation(row, "conversations")


def _read_labelled_completion(row: Row) -> Judged:
    """TRL, implicit prompt: {"completion": whole conversation, "label"}."""
    return _labelled_conversation(row, "completion")


def dense(values: Sequence[float]) -> list[int]:
    """Ranks without gaps, 1 for the lowest value: [10, 30, 10] -> [1, 2, 1]."""
    order = sorted(set(values))
    return [order.index(value) + 1 for value in values]


def _with_prompt(row: Row) -> Row:
    return {**row, "prompt": normalise(row["prompt"], where=row["where"])}


def _answer(row: Row, key: str) -> str:
    """The text of one assistant message."""
    messages = normalise(row[key], where=f"{row['where']}: {key}", role="assistant")
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        roles = [message["role"] for message in messages]
        raise DataError(
            f"{row['where']}: {key} is one assistant message beside a prompt, found {roles}; "
            "leave `prompt` out if chosen and rejected are whole conversations"
        )
    return messages[0]["content"]


def _conversation(row: Row, key: str) -> list[Message]:
    value = row[key]
    if not isinstance(value, str):
        return normalise(value, where=f"{row['where']}: {key}")
    pieces = _TURN.split(value)  # text before the first turn, then role, content, role, content ...
    if len(pieces) < 3 or pieces[0].strip():
        raise DataError(
            f'{row["where"]}: {key} is text without "Human:" and "Assistant:" turns and there is '
            f"no prompt; add a prompt, for example {EXAMPLE}"
        )
    messages: list[Message] = []
    for name, content in zip(pieces[1::2], pieces[2::2], strict=True):
        role = "user" if name == "Human" else "assistant"
        if messages and messages[-1]["role"] == role:  # an answer that itself says "Assistant:"
            messages[-1]["content"] += "\n\n" + content.strip()
        else:
            messages.append({"role": role, "content": content.strip()})
    return messages


EXAMPLE = '{"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."}'
SHAPES = (
    Shape(
        "ranking",
        ("prompt", "answers", "ranks"),
        '{"prompt": "Hi", "answers": ["Hello!", "Yes?", "Go."], "ranks": [1, 1, 2]}',
        _read_ranking,
    ),
    Shape(
        "ratings",
        ("prompt", "answers", "ratings"),
        '{"prompt": "Hi", "answers": ["Hello!", "Go."], "ratings": [5, 1]}',
        _read_ratings,
    ),
    Shape("pair", ("prompt", "chosen", "rejected"), EXAMPLE, _read_explicit),
    Shape(
        "sharegpt pair",
        ("conversations", "chosen", "rejected"),
        '{"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", '
        '"value": "Hello!"}, "rejected": {"from": "gpt", "value": "Go away."}}',
        _read_sharegpt,
    ),
    Shape(
        "alpaca pair",
        ("instruction", "chosen", "rejected"),
        '{"instruction": "Greet", "input": "", "chosen": "Hello!", "rejected": "Go away."}',
        _read_alpaca,
    ),
    Shape(
        "openai pair",
        ("input", "preferred_output", "non_preferred_output"),
        '{"input": {"messages": [{"role": "user", "content": "Hi"}]}, "preferred_output": '
        '[{"role": "assistant", "content": "Hello!"}], "non_preferred_output": [...]}',
        _read_openai,
    ),
    Shape(
        "conversation pair",
        ("chosen", "rejected"),
        '{"chosen": "\\n\\nHuman: Hi\\n\\nAssistant: Hello!", "rejected": '
        '"\\n\\nHuman: Hi\\n\\nAssistant: Go."}',
        _read_implicit,
    ),
    Shape(
        "labels",
        ("prompt", "answers", "labels"),
        '{"prompt": "Hi", "answers": ["Hello!", "Yes?", "Go."], "labels": [true, null, false]}',
        _read_labels,
    ),
    Shape(
        "label",
        ("prompt", "completion", "label"),
        '{"prompt": "Hi", "completion": "Hello!", "label": true}',
        _read_labelled,
    ),
    Shape(
        "label conversation",
        ("completion", "label"),
        '{"completion": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": '
        '"Hello!"}], "label": true}',
        _read_labelled_completion,
    ),
    Shape(
        "label messages",
        ("messages", "label"),
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": '
        '"Hello!"}], "label": true}',
        _read_labelled_messages,
    ),
    Shape(
        "kto_tag messages",
        ("messages", "kto_tag"),
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": '
        '"Go."}], "kto_tag": false}',
        _read_labelled_messages,
    ),
    Shape(
        "kto_tag sharegpt",
        ("conversations", "kto_tag"),
        '{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": '
        '"Hello!"}], "kto_tag": true}',
        _read_labelled_sharegpt,
    ),
    Shape(
        "kto_tag alpaca",
        ("instruction", "output", "kto_tag"),
        '{"instruction": "Greet", "input": "", "output": "Hello!", "kto_tag": true}',
        _read_labelled_alpaca,
    ),
)
