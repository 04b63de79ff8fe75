"""The shapes in which conversations and instructions come, each read to messages."""

import json
from collections.abc import Sequence
from typing import Any

from rung.errors import DataError
from rung.text import trees
from rung.text.messages import (
    MESSAGE_KEYS,
    Message,
    assistant,
    check_turns,
    normalise,
    user,
    with_system,
    with_tools,
)
from rung.text.rows import Row, Shape, find_shape, nearest_shape
from rung.text.turns import parse_turns

# Keys that say something about a row; any other key with text beside a prompt may be its answer.
_ABOUT = """
id idx index uid key qid name source src origin dataset subset split part domain topic category type
task kind tag tags lang language locale url link title meta metadata info date time created
timestamp author annotator model license licence version hash sha256 seed difficulty level score
length tokens num_tokens count format focus system tools history input weight message_tree_id
tree_state
"""
ABOUT = frozenset(_ABOUT.split())
# Keys of judged answers, which would be lost (or worse, trained on) as conversations.
_JUDGED = ("chosen", "rejected", "preferred_output", "non_preferred_output", "answers", "ranks")


def read_conversation(
    row: Row, *, where: str, ignore: Sequence[str] = ()
) -> tuple[Shape, list[Message]]:
    """(shape, messages) of a row; DataError for one of no known shape, with wrong types, with
    turns out of order, or with what looks like an answer under a key that no shape reads.

    ignore: keys that the user passes over knowingly.
    """
    seen = {key: value for key, value in row.items() if key not in ignore}
    _refuse_verdict(seen, where=where)
    shape = find_shape(seen, SHAPES, where=where, hint=_other_stage(seen))
    messages: list[Message] = shape.read({**seen, "where": where})
    check_turns(messages, where=where)
    if messages[-1]["role"] == "user":
        _refuse_lost_answers(shape, seen, where=where)
    return shape, messages


def unused_keys(shape: Shape, row: Row) -> list[str]:
    """Keys that were not read, in the row and in its messages."""
    keys = [key for key in shape.unused(row) if key != "format"]
    for value in (row.get(key) for key in shape.keys):
        for item in value if isinstance(value, list) else ():
            extra = set(item) - MESSAGE_KEYS if isinstance(item, dict) else set()
            keys += [f"{name} of a message" for name in sorted(map(str, extra)) if item.get(name)]
    return list(dict.fromkeys(keys))


def _refuse_verdict(row: Row, *, where: str) -> None:
    """Answers marked good or bad: trained on as they are, the model would learn the bad ones."""
    for key in ("label", "kto_tag"):
        if key in row and row[key] in (True, False) and "text" not in row:  # 1 and 0, too
            raise DataError(
                f"{where}: {key} is {str(row[key]).lower()}: answers judged good or bad go into "
                "the stage `feedback`; to train on all of them here, the bad ones too: "
                f"--set ignore=[{key}]"
            )


def _refuse_lost_answers(shape: Shape, row: Row, *, where: str) -> None:
    spare = [
        key
        for key in shape.unused(row)
        if key not in ABOUT and isinstance(row[key], str | list | dict) and row[key]
    ]
    if not spare:
        return
    with_answer = [other for other in SHAPES if other.name != "prompt"]
    names = ", ".join(map(repr, spare))
    raise DataError(
        f"{where}: there is no answer, but {names} may be one and would be lost; "
        f"{nearest_shape(row, with_answer)}; rename the answer, or say which key it is: "
        f"--set columns.completion={spare[0]}, or pass over: --set ignore=[{','.join(spare)}]"
        f"{_other_stage(row, spare=spare)}"
    )


def _other_stage(row: Row, *, spare: Sequence[str] = ()) -> str:
    """Where a row of another kind belongs."""
    if set(_JUDGED) & set(row) or len(spare) > 1:
        return ". Judged answers (chosen and rejected, ranks) go into the stage `feedback`"
    if set(row) - ABOUT == {"text"}:
        return ". Plain text goes into the stage `curate`"
    if "completions" in row and "labels" in row:
        return ". Judged steps go into the stage `feedback`"
    return ""


# Readers: a raw row (with its place under "where") to messages.


def dressed(row: Row, messages: list[Message]) -> list[Message]:
    """`messages` with the row's own `system` and `tools`."""
    where = row["where"]
    return with_tools(
        row.get("tools"), with_system(row.get("system"), messages, where=where), where=where
    )


def _listed(row: Row, key: str) -> list[Message]:
    if not isinstance(row[key], list):
        raise DataError(
            f"{row['where']}: {key} is {type(row[key]).__name__}, it must be a list of messages; "
            f"for example {EXAMPLE}"
        )
    return dressed(row, normalise(row[key], where=row["where"]))


def _read_messages(row: Row) -> list[Message]:
    return _listed(row, "messages")


def _read_sharegpt(row: Row) -> list[Message]:
    return _listed(row, "conversations")


def alpaca_prompt(row: Row) -> list[Message]:
    """Alpaca's history, then its instruction and input, a line break between them."""
    given = row.get("input") or ""
    if not isinstance(given, str):
        raise DataError(f"{row['where']}: input is {type(given).__name__}, it must be text")
    asked = _text(row, "instruction") + (f"\n{given}" if given else "")
    return dressed(row, [*_history(row), user(asked)])


def _read_alpaca(row: Row) -> list[Message]:
    return [*alpaca_prompt(row), assistant(_text(row, "output"))]


def _read_prompt_completion(row: Row) -> list[Message]:
    prompt = normalise(row["prompt"], where=row["where"])
    answer = normalise(row["completion"], where=row["where"], role="assistant")
    return dressed(row, [*prompt, *answer])


def _read_question_answer(row: Row) -> list[Message]:
    return dressed(row, [user(_text(row, "question")), assistant(_text(row, "answer"))])


def _read_tree(row: Row) -> list[Message]:
    return trees.best_path(row, where=row["where"])


def _read_turns(row: Row) -> list[Message]:
    messages = parse_turns(row["text"])
    assert messages is not None, "the shape's check has seen to it"
    return dressed(row, messages)


def _has_turns(row: Row) -> bool:
    return isinstance(row["text"], str) and parse_turns(row["text"]) is not None


def _read_labelled(row: Row) -> list[Message]:
    """The text and its label; `ask_for_labels` makes a question of it, once all are known."""
    return [user(_text(row, "text")), assistant(label_text(row["label"], where=row["where"]))]


def label_text(label: Any, *, where: str) -> str:
    """A label, or several separated by commas, as an answer."""
    labels = label if isinstance(label, list) else [label]
    for one in labels:
        if not isinstance(one, str | int):
            raise DataError(
                f"{where}: label is {type(one).__name__}, it must be text, a whole number or a "
                "list of them"
            )
    return ", ".join(str(one) for one in labels) or "none"


def _is_prompt(row: Row) -> bool:
    return isinstance(row["prompt"], str | list)


def _read_prompt(row: Row) -> list[Message]:
    return dressed(row, normalise(row["prompt"], where=row["where"]))


def _history(row: Row) -> list[Message]:
    turns: list[Message] = []
    for pair in row.get("history") or []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f"{row['where']}: history is a list of [question, answer] pairs")
        turns += [user(str(pair[0])), assistant(str(pair[1]))]
    return turns


def _text(row: Row, key: str) -> str:
    if not isinstance(row[key], str):
        raise DataError(f"{row['where']}: {key} is {type(row[key]).__name__}, it must be text")
    return row[key]


EXAMPLE = json.dumps(
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
)
LABELLED = Shape(
    "classification",
    ("text", "label"),
    '{"text": "Great film.", "label": "positive"}',
    _read_labelled,
)
_OPENING = ("system", "tools")
SHAPES = (
    Shape("messages", ("messages",), EXAMPLE, _read_messages, optional=_OPENING),
    Shape(
        "sharegpt",
        ("conversations",),
        '{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}',
        _read_sharegpt,
        optional=_OPENING,
    ),
    Shape(
        "alpaca",
        ("instruction", "output"),
        '{"instruction": "Add the numbers", "input": "2 and 3", "output": "5"}',
        _read_alpaca,
        optional=("input", "history", *_OPENING),
    ),
    Shape(
        "prompt-completion",
        ("prompt", "completion"),
        '{"prompt": "Hi", "completion": "Hello!"}',
        _read_prompt_completion,
        optional=_OPENING,
    ),
    Shape(
        "question-answer",
        ("question", "answer"),
        '{"question": "When are you open?", "answer": "From nine to five."}',
        _read_question_answer,
        optional=_OPENING,
    ),
    Shape("tree", ("prompt",), trees.EXAMPLE, _read_tree, check=trees.is_tree),
    LABELLED,
    Shape(
        "turns",
        ("text",),
        '{"text": "### Human: Hi ### Assistant: Hello!"}',
        _read_turns,
        check=_has_turns,
        optional=_OPENING,
    ),
    Shape(
        "prompt", ("prompt",), '{"prompt": "Hi"}', _read_prompt, check=_is_prompt, optional=_OPENING
    ),
)
