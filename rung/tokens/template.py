"""Chat templates: from the roles of a conversation to what stands between and around its messages.

A template is a Jinja program that writes text. Rendering it with the messages themselves would let
a user's text become special tokens, and would leave open which part is the answer. So it is
rendered once per sequence of roles, with a mark in place of every content. Between the marks is
the layout, in which special tokens are special and everything else is text.
"""

import functools
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from rung.errors import DataError

Message = Mapping[str, Any]
"""{"role": "user", "content": "..."}, on an answer optionally "weight" (a number >= 0)."""

_MARK = "\ue000{}\ue001"  # private use: no template has it, none takes it apart
_MARKS = re.compile("\ue000(\\d+)\ue001")
# Templates that write today's date get this one: what is trained must be what is served, any day.
_TODAY = datetime(2025, 1, 1)


@dataclass(frozen=True)
class Item:
    """A stretch that is encoded at once: a special token, or text with the contents of messages.

    special: its name, "" for text. parts: of a text, strings and indices of messages.
    after: the special token before it, "" where it goes on from text, None at the beginning.
    answer: index of the message whose answer it is part of, None outside of answers.
    """

    special: str
    parts: tuple[str | int, ...]
    after: str | None
    answer: int | None


@dataclass(frozen=True)
class Layout:
    """items in order; for each message index of an answer, whether a special token ends it."""

    items: tuple[Item, ...]
    ended: Mapping[int, bool]


class ChatTemplate:
    """source: Jinja. names: what it may refer to (`bos_token` ...). specials: all special tokens.

    DataError when it cannot be compiled.
    """

    def __init__(self, source: str, *, names: Mapping[str, str], specials: Sequence[str]) -> None:
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise DataError(f"the chat template cannot be read: {error}") from None
        self.source = source
        self._names = dict(names)
        longest_first = sorted(specials, key=len, reverse=True)
        self._specials = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._layouts: dict[tuple[tuple[str, ...], bool], Layout] = {}

    def layout(self, roles: tuple[str, ...], *, generation_prompt: bool) -> Layout:
        """Where the contents of messages with these roles stand.

        An answer begins where a generation prompt would end, and lasts to the first special token
        after its content. What a template writes after a last answer is left out. DataError with
        the template's own words where it refuses the roles.
        """
        key = (roles, generation_prompt)
        if key not in self._layouts:
            self._layouts[key] = self._lay_out(roles, generation_prompt)
        return self._layouts[key]

    def prepare(self, messages: Sequence[Message]) -> list[Message]:
        """`messages` as this template wants them: trimmed where it trims, a system message at the
        head of the first user message where it knows no system role, and answers without what the
        template itself writes before them (an empty block of thoughts)."""
        if messages and messages[0]["role"] == "system" and not self._has_system:
            first = messages[1] if len(messages) > 1 else {"role": "user", "content": ""}
            joined = f"{messages[0]['content']}\n\n{first['content']}".strip()
            messages = [{**first, "content": joined}, *messages[2:]]
        return [{**m, "content": self._content(m)} for m in messages]

    def text(self, messages: Sequence[Message], *, generation_prompt: bool) -> str:
        """What other programs get from this template: special tokens by their names."""
        prepared = self.prepare(messages)
        return self._write(
            [m["role"] for m in prepared],
            [m["content"] for m in prepared],
            generation_prompt=generation_prompt,
        )

    def _content(self, message: Message) -> str:
        content = self._trim(message["role"])(message["content"])
        head = self._head.strip() if message["role"] == "assistant" else ""
        return content.removeprefix(head).lstrip() if head and content.startswith(head) else content

    @functools.cached_property
    def _head(self) -> str:
        """What stands in an answer before its content."""
        layout = self.layout(("user", "assistant"), generation_prompt=False)
        pieces: list[str] = []
        for item in layout.items:
            if item.answer is not None:
                own = item.parts[: item.parts.index(1)] if 1 in item.parts else item.parts
                pieces += [item.special, *map(str, own)]
            if 1 in item.parts:
                break
        return "".join(pieces)

    @functools.cached_property
    def _has_system(self) -> bool:
        try:
            return _MARK.format(0) in self._text(("system", "user"), generation_prompt=True)
        except DataError:
            return False

    @functools.lru_cache(maxsize=8)  # noqa: B019 - a template lives as long as its tokenizer
    def _trim(self, role: str) -> Callable[[str], str]:
        """What the template does to the white space around a content of `role`."""
        roles = {"assistant": ("user", role), "system": (role, "user")}.get(role, (role,))
        index = roles.index(role)
        contents = [f" {_MARK.format(i)} " for i in range(len(roles))]
        text = self._write(roles, contents, generation_prompt=False)
        left = f" {_MARK.format(index)}" not in text
        right = f"{_MARK.format(index)} " not in text
        if left and right:
            return str.strip
        return str.lstrip if left else str.rstrip if right else str

    def _text(self, roles: Sequence[str], *, generation_prompt: bool) -> str:
        contents = [_MARK.format(index) for index in range(len(roles))]
        return self._write(roles, contents, generation_prompt=generation_prompt)

    def _write(
        self, roles: Sequence[str], contents: Sequence[str], *, generation_prompt: bool
    ) -> str:
        messages = [
            {"role": role, "content": content}
            for role, content in zip(roles, contents, strict=True)
        ]
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=generation_prompt, **self._names
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise DataError(
                f"the model's chat template refuses a conversation of {', '.join(roles)}: {error}"
            ) from None

    def _lay_out(self, roles: tuple[str, ...], generation_prompt: bool) -> Layout:
        text = self._text(roles, generation_prompt=generation_prompt)
        missing = [i for i in range(len(roles)) if _MARK.format(i) not in text]
        if missing:
            raise DataError(
                f"the model's chat template leaves out message {missing[0] + 1} "
                f"({roles[missing[0]]}) of a conversation of {', '.join(roles)}"
            )
        spans: dict[int, tuple[int, int]] = {}
        ended: dict[int, bool] = {}
        for index in (i for i, role in enumerate(roles) if role == "assistant"):
            spans[index], ended[index] = self._answer_span(text, roles, index)
        if roles[-1] == "assistant" and not generation_prompt:
            text = text[: spans[len(roles) - 1][1]]
        cuts = sorted({0, len(text), *(place for span in spans.values() for place in span)})
        items: list[Item] = []
        for first, last in itertools.pairwise(cuts):
            answer = next((i for i, (a, b) in spans.items() if a <= first < b), None)
            items += self._items(text[first:last], items[-1].special if items else None, answer)
        return Layout(tuple(items), ended)

    def _answer_span(
        self, text: str, roles: Sequence[str], index: int
    ) -> tuple[tuple[int, int], bool]:
        """((first, last) character of the answer, whether a special token ends it)."""
        mark = _MARK.format(index)
        at = text.index(mark)
        before = self._text(roles[:index], generation_prompt=True)
        # a template may write an old answer otherwise than a new one: then it is the content
        start = len(before) if text.startswith(before) and len(before) <= at else at
        end = at + len(mark)
        following = _MARKS.search(text, end)
        special = self._specials.search(text, end, following.start() if following else len(text))
        return (start, special.end() if special else end), special is not None

    def _items(self, text: str, after: str | None, answer: int | None) -> list[Item]:
        """`text` cut at its special tokens."""
        items: list[Item] = []
        at = 0
        for match in [*self._specials.finditer(text), None]:
            piece = text[at : match.start() if match else len(text)]
            if piece:
                items.append(Item("", _parts(piece), after, answer))
            if match:
                after = match.group()
                items.append(Item(after, (), None, answer))
                at = match.end()
        return items


def _parts(text: str) -> tuple[str | int, ...]:
    """Text and indices of messages by turns; empty strings left out."""
    pieces = _MARKS.split(text)  # text, index, text, index, ... text
    found: list[str | int] = []
    for number, piece in enumerate(pieces):
        if number % 2:
            found.append(int(piece))
        elif piece:
            found.append(piece)
    return tuple(found)


class _Generation(jinja2.ext.Extension):
    """{% generation %}...{% endgeneration %} marks answers for other programs: here it is air."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own attribute

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


@functools.cache
def _environment() -> jinja2.Environment:
    """Jinja as model templates expect it, in a sandbox: a template comes with a model's files."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _TODAY.strftime
    return environment


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
