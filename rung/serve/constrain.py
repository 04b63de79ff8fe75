"""What an answer must look like: tool_choice and response_format as a constraint of the engine.

A schema of its own for every function, as references inside a schema begin at its root. White
space is what rung/text/tools.py writes: what models were trained on, and a model that is made to
write JSON cannot fill its answer with spaces.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rung.errors import DataError, ResourceError, RungError
from rung.serve.assembly import CLOSE, OPEN
from rung.serve.errors import ApiError, as_api_error, bad_value, unsupported
from rung.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rung.engine.constraint import Constraint

Json = dict[str, Any]
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True)
class Format:
    """response_format. schema: of the answer, None where any object will do. grammar: Lark."""

    schema: Json | None = None
    grammar: str | None = None

    @property
    def lark(self) -> str:
        """As the rule `answer` of a larger grammar."""
        return f"answer: {_json_rule(self.schema if self.schema is not None else _OBJECT)}"


_OBJECT: Json = {"type": "object"}


def read_format(value: Json | None) -> Format | None:
    """response_format of a request, None where any text will do; ApiError where it is wrong."""
    kind = None if value is None else value.get("type")
    if value is None or kind == "text":
        return None
    if kind == "json_object":
        return Format()
    if kind == "json_schema":
        inner = value.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, dict) else None
        if not isinstance(schema, dict):
            message = 'response_format needs {"json_schema": {"name": "...", "schema": {...}}}'
            raise bad_value(message, param="response_format.json_schema.schema")
        return Format(schema=schema)
    if kind == "grammar":
        if not isinstance(value.get("grammar"), str):
            message = 'response_format needs {"grammar": "start: ..."}, in the syntax of Lark'
            raise bad_value(message, param="response_format.grammar")
        return Format(grammar=value["grammar"])
    raise unsupported(
        f"response_format {kind!r} is not known; there are text, json_object, json_schema, grammar",
        param="response_format.type",
    )


def tools_grammar(
    functions: Sequence[Json], *, forced: bool, many: bool, answer: Format | None = None
) -> str:
    """Lark for answers that call `functions`.

    forced: the answer is calls and nothing else. Otherwise it is text with calls in it, or with
    `answer` either calls or that. many: more than one call; else the answer ends with the first.
    """
    more = f' ("\\n" {_BLOCK})*' if many else ""
    lines = ["%llguidance {}"]
    if forced or answer is not None:
        lines += ["start: calls | answer" if not forced else "start: calls"]
        lines += [f"calls: {_BLOCK}{more}"]
        lines += [answer.lark] if answer is not None and not forced else []
    else:
        lines += ["start: marked* tail" if many else "start: marked | tail"]
        lines += ["tail: TEXT", "TEXT: /(.|\\n)*/"]
        lines += [f"begin[lazy]: TEXT {json.dumps(OPEN)}"]
        lines += [f'marked: begin "\\n" call {json.dumps(_AFTER)}']
    lines += ["call: " + " | ".join(f"call_{n}" for n in range(len(functions)))]
    for number, function in enumerate(functions):
        name = json.dumps(function["name"])
        before = json.dumps(f'{{"name": {name}, "arguments": ')
        lines += [f'call_{number}: {before} arguments_{number} "}}"']
        schema = function.get("parameters") or _OBJECT
        lines += [f"arguments_{number}: {_json_rule(schema)}"]
    return "\n".join(lines) + "\n"


_AFTER = "\n" + CLOSE
_BLOCK = f"{json.dumps(OPEN)} {json.dumps(chr(10))} call {json.dumps(_AFTER)}"


def _json_rule(schema: Json) -> str:
    own = schema.get("x-guidance")
    spacing = {**_SPACING, **own} if isinstance(own, dict) else _SPACING
    return "%json " + json.dumps({**schema, "x-guidance": spacing})


def grammar_of(tokenizer: Tokenizer, grammar: str, *, param: str) -> "Constraint":
    """A constraint from Lark; ApiError 400 where it cannot be read."""
    from rung.engine.constraint import grammar_constraint

    try:
        return grammar_constraint(tokenizer, grammar)
    except RungError as error:
        raise _blame(error, param) from None


def schema_of(tokenizer: Tokenizer, schema: Json | None, *, param: str) -> "Constraint":
    """A constraint from a JSON schema, None: any object; ApiError 400 where it cannot be kept."""
    from rung.engine.constraint import json_schema_constraint

    try:
        return json_schema_constraint(tokenizer, schema)
    except RungError as error:
        raise _blame(error, param) from None


def _blame(error: RungError, param: str) -> ApiError:
    if isinstance(error, DataError | ResourceError):  # the vocabulary, or no llguidance
        return unsupported(str(error), param=param)
    found = as_api_error(error, param=param)
    found.param = found.param or param
    return found
