"""Tasks of choice from files: a beginning, texts that may follow it, which one is right.

One JSON object a line:

    {"question": "Why is the sky blue?", "choices": ["Dust.", "Scattering."], "answer": 1}
    {"choices": ["The cats sleep.", "The cats sleeps."], "answer": "The cats sleep."}
    {"prompt": "He opened the box and took out the", "answer": "ring"}

The last one has no choices: then it is asked whether the answer is what the model would say.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rung.errors import DataError
from rung.text.json_rows import json_lines

EXAMPLE = '{"question": "...", "choices": ["a", "b"], "answer": 1}'


@dataclass(frozen=True)
class Item:
    """prompt: what comes before, may be empty. answer: index of the right one of `choices`, the
    only one where the model is asked for the answer itself."""

    id: str
    prompt: str
    choices: tuple[str, ...]
    answer: int

    @property
    def is_cloze(self) -> bool:
        return len(self.choices) == 1


def read_tasks(names: Sequence[str]) -> dict[str, list[Item]]:
    """Items by task, a task is called by its file: arc of data/arc.jsonl.

    DataError: no such file, two of one name, a row that cannot be asked.
    """
    tasks: dict[str, list[Item]] = {}
    for name in names:
        path = check_path(name)
        if path.stem in tasks:
            raise DataError(f"two of `tasks` are called {path.stem!r}; rename one of the files")
        tasks[path.stem] = read_items(path)
    return tasks


def fingerprint_tasks(names: Sequence[str]) -> dict[str, str]:
    """sha256 of every file: a changed file is another input."""
    return {name: hashlib.sha256(check_path(name).read_bytes()).hexdigest() for name in names}


def check_path(name: str) -> Path:
    path = Path(name)
    if path.suffix != ".jsonl" or not path.is_file():
        raise DataError(f"{name}: `tasks` names .jsonl files, and this is none (in {Path.cwd()})")
    return path


def read_items(path: Path) -> list[Item]:
    """All items of a file; DataError names the line of one that cannot be asked."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    rows = json_lines(text, path=str(path), example=EXAMPLE)
    items = [_item(row, where=f"{path}:{line}", number=n) for n, (line, row) in enumerate(rows)]
    if not items:
        raise DataError(f"{path}: no rows; one object a line, for example {EXAMPLE}")
    if len({item.is_cloze for item in items}) > 1:
        raise DataError(
            f"{path}: some rows have choices and some have none; they are measured in different "
            "ways: put them into two files"
        )
    twice = _first_double([item.id for item in items])
    if twice is not None:
        raise DataError(f"{path}: the id {twice!r} is there twice; give each row its own, or none")
    return items


def _first_double(names: Sequence[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _item(row: Any, *, where: str, number: int) -> Item:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: {type(row).__name__}, not an object; for example {EXAMPLE}")
    asked = [key for key in ("prompt", "question") if key in row]
    if len(asked) > 1:
        raise DataError(f"{where}: `prompt` and `question` mean the same; keep one")
    prompt = row[asked[0]] if asked else ""
    if not isinstance(prompt, str):
        raise DataError(f"{where}: {asked[0]} is a text, found {type(prompt).__name__}")
    choices, answer = _choices(row, where=where)
    return Item(str(row.get("id", number)), prompt, choices, answer)


def _choices(row: Mapping[str, Any], *, where: str) -> tuple[tuple[str, ...], int]:
    """The texts, and which of them is right."""
    answer = row.get("answer")
    if "choices" not in row:
        if isinstance(answer, str) and answer.strip():
            return (answer,), 0
        raise DataError(f"{where}: without `choices` the `answer` is a text, found {answer!r}")
    choices = row["choices"]
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(choice, str) and choice.strip() for choice in choices)
    ):
        raise DataError(f"{where}: `choices` are two texts or more, none of them empty")
    if len(set(choices)) < len(choices):
        raise DataError(f"{where}: two of the `choices` are the same text")
    if isinstance(answer, str) and answer in choices:
        return tuple(choices), choices.index(answer)
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return tuple(choices), answer
    raise DataError(
        f"{where}: `answer` is {answer!r}; it is one of the choices, or its number from 0 to "
        f"{len(choices) - 1}"
    )
