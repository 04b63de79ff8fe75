"""Tool calls as text, in the Hermes convention: any model can read and write them.

The tools stand in the system message between <tools> tags, a call is the assistant's text between
<tool_call> tags, a result comes as a user message between <tool_response> tags.
"""

import json
from typing import Any

from rung.errors import DataError
from rung.text.json_rows import load_json

CALL_EXAMPLE = '{"name": "get_weather", "arguments": {"city": "Oslo"}}'

_HOW = (
    "You may call these functions, one JSON object a line:\n<tools>\n{tools}\n</tools>\n"
    "To call one, answer with\n<tool_call>\n"
    '{{"name": "its name", "arguments": {{"argument": "value"}}}}\n</tool_call>'
)


def tools_text(value: Any, *, where: str) -> str:
    """What the system message says of `tools` (a list, or a list as JSON text); "" for none."""
    if value is None or value == "":
        return ""
    if isinstance(value, str):
        value = _parse(value, where=where, what="tools")
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise DataError(
            f"{where}: tools are a list of objects, found {value!r:.60}; for example "
            '[{"name": "get_weather", "description": "...", "parameters": {...}}]'
        )
    # OpenAI wraps each in {"type": "function", "function": {...}}
    plain = [tool["function"] if isinstance(tool.get("function"), dict) else tool for tool in value]
    nameless = next((tool for tool in plain if not isinstance(tool.get("name"), str)), None)
    if nameless is not None:
        raise DataError(f"{where}: a tool has no name: {_dump(nameless):.80}")
    return _HOW.format(tools="\n".join(_dump(tool) for tool in plain)) if plain else ""


def calls_text(value: Any, *, where: str) -> str:
    """One call, a list of calls, or either as JSON text: a <tool_call> block for each."""
    if isinstance(value, str):
        value = _parse(value, where=where, what="the tool call")
    calls = value if isinstance(value, list) else [value]
    if not calls:
        raise DataError(f"{where}: an empty list of tool calls; for example {CALL_EXAMPLE}")
    return "\n".join(f"<tool_call>\n{_call(call, where=where)}\n</tool_call>" for call in calls)


def response_text(content: str) -> str:
    """A result as the user message that brings it."""
    return f"<tool_response>\n{content}\n</tool_response>"


def _call(call: Any, *, where: str) -> str:
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise DataError(
            f"{where}: a tool call is an object with name and arguments, found {call!r:.80}; "
            f"for example {CALL_EXAMPLE}"
        )
    arguments = inner.get("arguments", inner.get("parameters"))
    if isinstance(arguments, str):  # OpenAI writes them as JSON text
        arguments = _parse(arguments, where=where, what="arguments") if arguments.strip() else {}
    return _dump({"name": inner["name"], "arguments": {} if arguments is None else arguments})


def _parse(text: str, *, where: str, what: str) -> Any:
    try:
        return load_json(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: {what} is not JSON ({error}): {text[:60]!r}; for example {CALL_EXAMPLE}"
        ) from None


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
