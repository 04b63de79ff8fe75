"""The shapes in which preferences come: pairs with or without their prompt, rankings, ratings,
and answers with a label of their own (KTO)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rung.errors import DataError
from rung.feedback.events import as_rankings, parse_event
from rung.feedback.schema import (
    Ranking,
    check_labels,
    check_margin,
    check_prompt,
    check_weight,
    parse_ranking,
)
from rung.tasks.shapes import alpaca_prompt, dressed
from rung.text import trees
from rung.text.messages import Message, normalise
from rung.text.rows import Row, Shape
from rung.text.turns import parse_turns

_ANNOTATOR = re.compile(r"annotator[_ ]?\d+")


@dataclass(frozen=True)
class Judged:
    """One judgement as read: ranks 1 is best. drop: why it cannot be used, or "".

    margin: by how much the first of a pair is better, in units of the reward; None: not said.
    """

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
    stopped: list[bool] | None = None
    source: Mapping[str, Any] = field(default_factory=dict)


def from_ranking(ranking: Ranking) -> Judged:
    """A ranking of the chat page, to be checked and counted like one of a file."""
    return Judged(
        list(ranking.prompt),
        list(ranking.answers),
        list(ranking.ranks),
        [list(flags) for flags in ranking.flags],
        annotator=ranking.annotator,
        labels=None if ranking.labels is None else list(ranking.labels),
        stopped=list(ranking.stopped),
        source=ranking.source,
    )


def _read_event(row: Row) -> list[Judged]:
    """What an event of the chat page says by itself; the stage reads all of them together, for
    later ones replace earlier ones."""
    said = {key: value for key, value in row.items() if key != "where"}
    event = parse_event(said, where=row["where"])
    return [from_ranking(ranking) for ranking in as_rankings([event])]


def _pair(prompt: list[Message], chosen: str, rejected: str, row: Row) -> Judged:
    where = row["where"]
    check_prompt(prompt, where=where)
    return Judged(
        dressed(row, prompt),
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
    prompt = alpaca_prompt({**row, "system": None, "tools": None})  # _pair adds both
    return _pair(prompt, _answer(row, "chosen"), _answer(row, "rejected"), row)


def _read_sharegpt(row: Row) -> Judged:
    """ShareGPT ranking: {"conversations": [...], "chosen": {from, value}, "rejected": {...}}."""
    prompt = normalise(row["conversations"], where=row["where"])
    return _pair(prompt, _answer(row, "chosen"), _answer(row, "rejected"), row)


def _read_openai(row: Row) -> Judged:
    """OpenAI: {"input": {"messages": [...]}, "preferred_output", "non_preferred_output"}."""
    given = row["input"] if isinstance(row["input"], dict) else {"messages": row["input"]}
    prompt = normalise(given.get("messages"), where=row["where"])
    row = {"tools": given.get("tools"), **row}
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


def _read_annotated(row: Row) -> list[Judged]:
    """PandaLM: two responses, and per annotator which is better, 1 or 2; 0 is a tie."""
    prompt = alpaca_prompt(row)
    check_prompt(prompt, where=row["where"])
    if any(isinstance(row[key], bool | int | float) for key in ("response1", "response2")):
        # "True" became true in the published file: what was written is not known any more
        return [Judged([], [], [], [], drop="answer_is_no_text")]
    answers = [_answer(row, "response1"), _answer(row, "response2")]
    judged = []
    for key in sorted(key for key in row if _ANNOTATOR.fullmatch(key)):
        verdict = row[key]
        if isinstance(verdict, bool) or verdict not in (0, 1, 2):
            raise DataError(
                f"{row['where']}: {key} is {verdict!r}; 1 or 2 says which response is better, "
                "0 that neither is"
            )
        ranks = [1, 1] if verdict == 0 else [verdict, 3 - verdict]
        judged.append(Judged(prompt, answers, ranks, [[], []], annotator=key))
    return judged


def _read_tree(row: Row) -> list[Judged]:
    """OpenAssistant: a ranking wherever people ranked at least two replies."""
    return [
        Judged(
            found.prompt,
            found.answers,
            dense(found.ranks),
            [[] for _ in found.answers],
            annotator=_annotator(row),
        )
        for found in trees.ranked_replies(row, where=row["where"])
    ]


def _read_stepwise(row: Row) -> Judged:
    """TRL: {"prompt", "completions", "labels"}, steps of one solution and whether each is right.

    One answer, rated by the share of its steps before the first wrong one; the stage ranks the
    solutions of a prompt against each other.
    """
    steps, labels = row["completions"], row["labels"]
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise DataError(f"{row['where']}: completions are a list of texts, found {steps!r:.60}")
    if not isinstance(labels, list) or len(labels) != len(steps) or not steps:
        found = len(labels) if isinstance(labels, list) else type(labels).__name__
        raise DataError(
            f"{row['where']}: {len(steps)} steps need {len(steps)} labels, found {found}"
        )
    if not all(isinstance(label, bool | int | float) for label in labels):
        raise DataError(f"{row['where']}: labels are true or false, found {labels!r:.60}")
    right = next((i for i, label in enumerate(labels) if not label > 0), len(labels))
    prompt = dressed(row, normalise(row["prompt"], where=row["where"]))
    check_prompt(prompt, where=row["where"])
    answer = "\n".join(step.strip("\n") for step in steps)
    return Judged(prompt, [answer], [1], [[]], [right / len(steps)], _annotator(row))


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
    num = len(row["answers"]) if isinstance(row["answers"], list) else 0
    if num != len(labels):
        raise DataError(f"{row['where']}: {num} answers need {num} labels, found {len(labels)}")
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
    prompt = dressed(row, normalise(row["prompt"], where=row["where"]))
    return _labelled(prompt, _answer(row, "completion"), row)


def _read_labelled_alpaca(row: Row) -> Judged:
    """LLaMA-Factory: {"instruction", "input", "output", "kto_tag"}."""
    return _labelled(alpaca_prompt(row), _answer(row, "output"), row)


def _labelled_conversation(row: Row, key: str) -> Judged:
    """A whole conversation whose last message is judged."""
    messages = _conversation(row, key)
    if messages[-1]["role"] != "assistant":
        return Judged([], [], [], [], drop="no_answer_at_the_end")
    return _labelled(dressed(row, messages[:-1]), messages[-1]["content"], row)


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
    messages = parse_turns(value)
    if messages is None:
        raise DataError(
            f'{row["where"]}: {key} is text without "Human:" and "Assistant:" turns and there is '
            f"no prompt; add a prompt, for example {EXAMPLE}"
        )
    return messages


_ALL = ("annotator", "system", "tools", "weight")
_OWN = ("flags", "stopped", "id", "kind", "source", "annotator", "margin", "weight")
EXAMPLE = '{"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."}'
SHAPES = (
    Shape(
        "chat event",
        ("key", "kind", "subject", "prompt", "answers", "value"),
        '{"key": "1", "kind": "thumb", "subject": "a1", "prompt": [{"role": "user", "content": '
        '"Hi"}], "answers": [{"text": "Hello!"}], "value": "up"}',
        _read_event,
        optional=("id", "time", "comment", "blind", "sampling", "annotator"),
    ),
    Shape(
        "ranking",
        ("prompt", "answers", "ranks"),
        '{"prompt": "Hi", "answers": ["Hello!", "Yes?", "Go."], "ranks": [1, 1, 2]}',
        _read_ranking,
        optional=("ratings", "labels", *_OWN),
    ),
    Shape(
        "ratings",
        ("prompt", "answers", "ratings"),
        '{"prompt": "Hi", "answers": ["Hello!", "Go."], "ratings": [5, 1]}',
        _read_ratings,
        optional=("labels", *_OWN),
    ),
    Shape(
        "pair",
        ("prompt", "chosen", "rejected"),
        EXAMPLE,
        _read_explicit,
        optional=("margin", *_ALL),
    ),
    Shape(
        "sharegpt pair",
        ("conversations", "chosen", "rejected"),
        '{"conversations": [{"from": "human", "value": "Hi"}], "chosen": {"from": "gpt", '
        '"value": "Hello!"}, "rejected": {"from": "gpt", "value": "Go away."}}',
        _read_sharegpt,
        optional=("margin", *_ALL),
    ),
    Shape(
        "alpaca pair",
        ("instruction", "chosen", "rejected"),
        '{"instruction": "Greet", "input": "", "chosen": "Hello!", "rejected": "Go away."}',
        _read_alpaca,
        optional=("margin", "input", "history", *_ALL),
    ),
    Shape(
        "openai pair",
        ("input", "preferred_output", "non_preferred_output"),
        '{"input": {"messages": [{"role": "user", "content": "Hi"}]}, "preferred_output": '
        '[{"role": "assistant", "content": "Hello!"}], "non_preferred_output": [...]}',
        _read_openai,
        optional=("margin", *_ALL),
    ),
    Shape(
        "conversation pair",
        ("chosen", "rejected"),
        '{"chosen": "\\n\\nHuman: Hi\\n\\nAssistant: Hello!", "rejected": '
        '"\\n\\nHuman: Hi\\n\\nAssistant: Go."}',
        _read_implicit,
        optional=("margin", *_ALL),
    ),
    Shape(
        "annotated pair",
        ("instruction", "response1", "response2", "annotator1"),
        '{"instruction": "Greet", "input": "", "response1": "Hello!", "response2": "Go away.", '
        '"annotator1": 1, "annotator2": 0}',
        _read_annotated,
        optional=("input", "history", "annotator2", "annotator3", "annotator4", "annotator5"),
    ),
    Shape("tree", ("prompt",), trees.EXAMPLE, _read_tree, check=trees.is_tree),
    Shape(
        "stepwise",
        ("prompt", "completions", "labels"),
        '{"prompt": "2 + 3 * 2?", "completions": ["3 * 2 = 6.", "2 + 6 = 9."], '
        '"labels": [true, false]}',
        _read_stepwise,
        optional=_ALL,
    ),
    Shape(
        "labels",
        ("prompt", "answers", "labels"),
        '{"prompt": "Hi", "answers": ["Hello!", "Yes?", "Go."], "labels": [true, null, false]}',
        _read_labels,
        optional=_ALL,
    ),
    Shape(
        "label",
        ("prompt", "completion", "label"),
        '{"prompt": "Hi", "completion": "Hello!", "label": true}',
        _read_labelled,
        optional=_ALL,
    ),
    Shape(
        "label conversation",
        ("completion", "label"),
        '{"completion": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": '
        '"Hello!"}], "label": true}',
        _read_labelled_completion,
        optional=_ALL,
    ),
    Shape(
        "label messages",
        ("messages", "label"),
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": '
        '"Hello!"}], "label": true}',
        _read_labelled_messages,
        optional=_ALL,
    ),
    Shape(
        "kto_tag messages",
        ("messages", "kto_tag"),
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": '
        '"Go."}], "kto_tag": false}',
        _read_labelled_messages,
        optional=_ALL,
    ),
    Shape(
        "kto_tag sharegpt",
        ("conversations", "kto_tag"),
        '{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": '
        '"Hello!"}], "kto_tag": true}',
        _read_labelled_sharegpt,
        optional=_ALL,
    ),
    Shape(
        "kto_tag alpaca",
        ("instruction", "output", "kto_tag"),
        '{"instruction": "Greet", "input": "", "output": "Hello!", "kto_tag": true}',
        _read_labelled_alpaca,
        optional=("input", "history", *_ALL),
    ),
)
