"""Stage `dataset`: conversations and instructions of your own files, in the usual shapes."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from rung.config import Config as BaseConfig
from rung.errors import DataError
from rung.store.artefact import canonical_json
from rung.store.context import Notes, StageContext
from rung.text.messages import Message, assistant, check_turns, has_blank, normalise, user
from rung.text.rows import Row, Shape, find_shape, read_rows, write_rows


class Config(BaseConfig):
    """Your own rows: .jsonl, .json (a list), each also .gz."""

    files: tuple[str, ...] = Field(
        default=(), description="files with one row a line (.jsonl) or a list of rows (.json)"
    )
    heldout_fraction: float = Field(
        default=0.05, ge=0, lt=1, description="share of rows kept out of training for evaluation"
    )
    prompts_fraction: float = Field(
        default=0.0, ge=0, lt=1, description="share of rows kept as prompts for preferences and RL"
    )
    seed: int = Field(default=0, description="seed of the split")


def fingerprint(config: Config) -> dict[str, str]:
    """sha256 of every file: a changed file is another input."""
    return {name: hashlib.sha256(_existing(name).read_bytes()).hexdigest() for name in config.files}


def run(context: StageContext, config: Config) -> Notes:
    """dataset: train.jsonl, heldout.jsonl, prompts.jsonl and report.json.

    Rows with a prompt and no answer go to prompts.jsonl. Rows with an empty message are dropped
    and counted, equal conversations count once, so that none lies on both sides. The side of a row
    is drawn from (seed, its content).
    """
    if not config.files:
        raise DataError("files is empty; name at least one, as in --set files=[my/chats.jsonl]")
    shapes: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    rows: dict[str, Row] = {}
    num_read = 0
    for name in config.files:
        for line, raw in read_rows(_existing(name), example=EXAMPLE):
            where = f"{name}:{line}"
            shape = find_shape(raw, SHAPES, where=where)
            shapes[shape.name] += 1
            num_read += 1
            messages: list[Message] = shape.read({**raw, "where": where})
            check_turns(messages, where=where)
            if has_blank(messages):
                dropped["empty_message"] += 1
                continue
            row = _instruction_row(messages)
            dropped["duplicate"] += row["id"] in rows
            rows.setdefault(row["id"], row)
    if not rows:
        raise DataError(
            f"no usable rows in {', '.join(config.files)} ({num_read} read, "
            f"{dropped['empty_message']} with an empty message); for example {EXAMPLE}"
        )
    files = _split(list(rows.values()), config)
    if not files["train"]:
        raise DataError(
            f"all {len(rows)} rows fell on prompts or the held-out side, none is left to train on; "
            "add rows with answers or lower heldout_fraction and prompts_fraction"
        )
    for side, of_side in files.items():
        write_rows(context.out / f"{side}.jsonl", of_side)
    report = {
        "rows_read": num_read,
        "shapes": dict(sorted(shapes.items())),
        "dropped": {reason: count for reason, count in sorted(dropped.items()) if count},
        "rows": {side: len(of_side) for side, of_side in files.items()},
        "without_answer": sum(not row["truth"]["answer"] for row in rows.values()),
    }
    (context.out / "report.json").write_text(canonical_json(report) + "\n", encoding="utf-8")
    context.progress.say(
        f"dataset: {report['rows']} from {num_read} rows read; dropped {report['dropped']}"
    )
    return {"counts": report, "figures": {f"num_{k}": len(v) for k, v in files.items()}}


def _existing(name: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise DataError(f"{name}: no such file (in {Path.cwd()}); check `files`")
    return path


def _instruction_row(messages: list[Message]) -> Row:
    """The row of docs/design.md; the last assistant message is the reference answer, "" if none."""
    if messages[-1]["role"] == "user":
        messages = [*messages, assistant("")]
    digest = hashlib.sha256(canonical_json(messages).encode()).hexdigest()
    return {
        "id": f"files/{digest[:16]}",
        "format": "conversation",
        "split_group": "files",
        "messages": messages,
        "truth": {
            "name": None,
            "exists": True,
            "answer": messages[-1]["content"],
            "passage": None,
            "question": "conversation",
            "new_phrasing": False,
        },
    }


def _split(rows: Sequence[Row], config: Config) -> dict[str, list[Row]]:
    sides: dict[str, list[Row]] = {"train": [], "heldout": [], "prompts": []}
    for row in rows:
        drawn = hashlib.sha256(f"{config.seed}/{row['id']}".encode()).digest()
        unit = int.from_bytes(drawn[:8], "big") / 2**64
        if not row["truth"]["answer"] or unit >= 1 - config.prompts_fraction:
            sides["prompts"].append(row)
        elif unit < config.heldout_fraction:
            sides["heldout"].append(row)
        else:
            sides["train"].append(row)
    return sides


# Readers: a raw row (with its place under "where") to messages.


def _read_messages(row: Row) -> list[Message]:
    return normalise(row["messages"], where=row["where"])


def _read_sharegpt(row: Row) -> list[Message]:
    messages = normalise(row["conversations"], where=row["where"])
    return _with_system(row.get("system"), messages)


def _read_alpaca(row: Row) -> list[Message]:
    return _with_system(
        row.get("system"),
        [*_history(row), user(instruction_of(row)), assistant(_text(row, "output"))],
    )


def _read_prompt_completion(row: Row) -> list[Message]:
    prompt = normalise(row["prompt"], where=row["where"])
    return [*prompt, *normalise(row["completion"], where=row["where"], role="assistant")]


def _is_prompt(row: Row) -> bool:
    return isinstance(row["prompt"], str | list)


def _read_prompt(row: Row) -> list[Message]:
    return normalise(row["prompt"], where=row["where"])


def instruction_of(row: Row) -> str:
    """Alpaca's instruction and input, joined by a line break where there is an input."""
    given = row.get("input") or ""
    return _text(row, "instruction") + (f"\n{given}" if isinstance(given, str) and given else "")


def _history(row: Row) -> list[Message]:
    turns: list[Message] = []
    for pair in row.get("history") or []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f"{row['where']}: history is a list of [question, answer] pairs")
        turns += [user(str(pair[0])), assistant(str(pair[1]))]
    return turns


def _with_system(system: Any, messages: list[Message]) -> list[Message]:
    if not system or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": str(system)}, *messages]


def _text(row: Row, key: str) -> str:
    if not isinstance(row[key], str):
        raise DataError(f"{row['where']}: {key} is {type(row[key]).__name__}, it must be text")
    return row[key]


EXAMPLE = json.dumps(
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
)
SHAPES = (
    Shape("messages", ("messages",), EXAMPLE, _read_messages),
    Shape(
        "sharegpt",
        ("conversations",),
        '{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}',
        _read_sharegpt,
    ),
    Shape(
        "alpaca",
        ("instruction", "output"),
        '{"instruction": "Add the numbers", "input": "2 and 3", "output": "5"}',
        _read_alpaca,
    ),
    Shape(
        "prompt-completion",
        ("prompt", "completion"),
        '{"prompt": "Hi", "completion": "Hello!"}',
        _read_prompt_completion,
    ),
    Shape("prompt", ("prompt",), '{"prompt": "Hi"}', _read_prompt, check=_is_prompt),
)
