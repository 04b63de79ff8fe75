"""Requests into orders for the engine: sampling, tools, formats, limits."""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rung.engine.sampling import Sampling
from rung.engine.service import Order, ServedModel
from rung.serve.constrain import Format, grammar_of, read_format, schema_of, tools_grammar
from rung.serve.errors import bad_value, unsupported
from rung.serve.openai_shapes import ChatRequest, CompletionRequest, Sampled
from rung.serve.prompts import chat_prompt, check_length, given_ids, text_ids
from rung.serve.state import ServerState
from rung.text.messages import Message
from rung.tokens.tokenizer import Tokenizer

Json = dict[str, Any]
COMPLETION_TOKENS = 16  # OpenAI's default of max_tokens for completions
MAX_STOPS = {"chat": 4, "completions": 16}  # harnesses send a stop string for every end they know
MAX_TOOLS = 128
_FUNCTION_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class Plan:
    """What a request asks of the engine: an order a prompt.

    prompt: for the traffic log. reads_tools: <tool_call> in an answer is a call.
    """

    model: ServedModel
    tokenizer: Tokenizer
    orders: list[Order]
    prompt: list[Message] | str
    reads_tools: bool = False

    @property
    def prompt_tokens(self) -> int:
        return sum(len(order.prompt) for order in self.orders)


def plan_chat(state: ServerState, body: ChatRequest) -> Plan:
    """ApiError for whatever cannot be done."""
    model = state.served(body.model)
    tokenizer = state.engine.tokenizer(model.name)
    _refuse_of_chat(body)
    n, best_of = check_shared(body)
    check_choices(state, prompts=1, answers=max(n, best_of), param="n")
    functions, choice = read_tools(body)
    told = chat_prompt(tokenizer, body.messages, functions=functions)
    check_length(told.ids, model, param="messages")
    limit = (
        body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    )
    order = Order(
        prompt=told.ids,
        sampling=_sampling(body, tokenizer, model, told.ids, limit=limit, stops=MAX_STOPS["chat"]),
        num_samples=n,
        best_of=best_of,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        constraint=_constraint(tokenizer, body, functions, choice),
    )
    return Plan(model, tokenizer, [order], told.messages, reads_tools=bool(functions))


def plan_completions(state: ServerState, body: CompletionRequest) -> Plan:
    """ApiError for whatever cannot be done."""
    model = state.served(body.model)
    tokenizer = state.engine.tokenizer(model.name)
    n, best_of = check_shared(body)
    if body.suffix:
        raise unsupported(
            "suffix is not supported: these models write forwards only", param="suffix"
        )
    if body.max_tokens == 0 and not body.echo:
        raise bad_value(
            "max_tokens 0 gives nothing; to score the prompt set echo", param="max_tokens"
        )
    limit = COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    prompts = _prompts(tokenizer, body.prompt)
    check_choices(state, prompts=len(prompts), answers=max(n, best_of), param="prompt")
    wanted = read_format(body.response_format)
    constraint = None if wanted is None else _format_constraint(tokenizer, wanted)
    orders = []
    for ids in prompts:
        check_length(ids, model, param="prompt")
        orders.append(
            Order(
                prompt=ids,
                sampling=_sampling(
                    body, tokenizer, model, ids, limit=limit, stops=MAX_STOPS["completions"]
                ),
                num_samples=n,
                best_of=best_of,
                top_logprobs=body.logprobs,
                echo=bool(body.echo),
                constraint=constraint,
            )
        )
    logged = prompts if state.traffic is not None else []
    return Plan(model, tokenizer, orders, "\n".join(map(tokenizer.decode, logged)))


def check_choices(state: ServerState, *, prompts: int, answers: int, param: str) -> None:
    """ApiError where a request asks for more than could ever be taken at once."""
    most = state.settings.max_choices
    if prompts * answers > most:
        raise bad_value(
            f"{prompts} prompts x {answers} answers are more than the {most} that one request may "
            "ask for; send several requests",
            param=param,
        )


def check_shared(body: Sampled) -> tuple[int, int]:
    """What holds for both kinds of request; (answers given, answers made to choose them from or
    0)."""
    if body.stream_options is not None and not body.stream:
        raise bad_value("stream_options needs stream: true", param="stream_options")
    best_of, n = body.best_of or 0, body.n or 1
    if best_of and best_of < n:
        raise bad_value(f"best_of {best_of} is less than n {n}", param="best_of")
    if best_of > n and body.stream:
        raise bad_value(
            "best_of needs whole answers to choose from: set stream to false", param="best_of"
        )
    return n, best_of


def _refuse_of_chat(body: ChatRequest) -> None:
    if body.functions is not None or body.function_call is not None:
        old = "functions" if body.functions is not None else "function_call"
        raise unsupported(f"{old} is the old form; use tools and tool_choice", param=old)
    if body.audio is not None or any(kind != "text" for kind in body.modalities or ()):
        raise unsupported("these models write text only", param="modalities")
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_value("top_logprobs needs logprobs: true", param="top_logprobs")
    if body.max_tokens == 0:
        raise bad_value("max_tokens is 0; at least 1 is due", param="max_tokens")


def read_tools(body: ChatRequest) -> tuple[list[Json], str]:
    """(functions, choice): choice is "auto", "required" or the name of a function.

    No functions where the model is not to call any.
    """
    choice = body.tool_choice
    named = choice.get("function") if isinstance(choice, dict) else None
    name = named.get("name") if isinstance(named, dict) else None
    if isinstance(choice, dict) and (choice.get("type") != "function" or not isinstance(name, str)):
        raise unsupported(
            f"tool_choice {choice.get('type')!r} is not supported; "
            '{"type": "function", "function": {"name": "..."}} names one',
            param="tool_choice",
        )
    if isinstance(choice, str) and choice not in ("none", "auto", "required"):
        raise bad_value(
            f"tool_choice {choice!r}: it is none, auto, required or an object", param="tool_choice"
        )
    functions = [_function(tool, number) for number, tool in enumerate(body.tools or ())]
    if len(functions) > MAX_TOOLS:
        raise bad_value(f"{len(functions)} tools; at most {MAX_TOOLS} are read", param="tools")
    if not functions and (name is not None or choice == "required"):
        raise bad_value("tool_choice needs tools", param="tool_choice")
    if name is not None and name not in [function["name"] for function in functions]:
        raise bad_value(f"tool_choice names {name!r}, which is not in tools", param="tool_choice")
    if choice == "none":
        return [], "none"
    return functions, name or (choice if isinstance(choice, str) else "auto")


def _function(tool: Json, number: int) -> Json:
    where = f"tools[{number}]"
    if tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
        raise unsupported(
            f"a tool of type {tool.get('type')!r} is not supported; "
            '{"type": "function", "function": {"name": "...", "parameters": {...}}} is',
            param=where,
        )
    function = tool["function"]
    name = function.get("name")
    if not isinstance(name, str) or not _FUNCTION_NAME.fullmatch(name):
        raise bad_value(
            f"{name!r} is no function's name: up to 64 letters, digits, '_', '-', '.'",
            param=f"{where}.function.name",
        )
    if not isinstance(function.get("parameters", {}), dict | None):
        raise bad_value("parameters are a JSON schema", param=f"{where}.function.parameters")
    return dict(function)


def _constraint(
    tokenizer: Tokenizer, body: ChatRequest, functions: Sequence[Json], choice: str
) -> Any:
    wanted = read_format(body.response_format)
    if not functions:
        return None if wanted is None else _format_constraint(tokenizer, wanted)
    named = [function for function in functions if function["name"] == choice]
    forced = choice == "required" or bool(named)
    if wanted is not None and wanted.grammar is not None:
        raise unsupported("a grammar cannot be combined with tools", param="response_format")
    many = not named and body.parallel_tool_calls is not False
    if forced or wanted is not None or not many or any(f.get("strict") for f in functions):
        grammar = tools_grammar(named or functions, forced=forced, many=many, answer=wanted)
        return grammar_of(tokenizer, grammar, param="tools")
    return None


def _format_constraint(tokenizer: Tokenizer, wanted: Format) -> Any:
    if wanted.grammar is not None:
        return grammar_of(tokenizer, wanted.grammar, param="response_format.grammar")
    return schema_of(tokenizer, wanted.schema, param="response_format")


def _sampling(
    body: Sampled,
    tokenizer: Tokenizer,
    model: ServedModel,
    ids: np.ndarray,
    *,
    limit: int | None,
    stops: int,
) -> Sampling:
    room = max(model.context - len(ids), 1)  # a token after the last position is only scored
    most = room if limit is None else min(limit, room)
    least = body.min_tokens or 0
    if least > most:
        raise bad_value(
            f"min_tokens {least} is more than the {most} of max_tokens", param="min_tokens"
        )
    return Sampling(
        max_new_tokens=most,
        min_new_tokens=least,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=max(1.0 if body.top_p is None else body.top_p, 1e-9),  # 0: the likeliest token
        top_k=max(body.top_k or 0, 0),
        min_p=body.min_p or 0.0,
        repetition_penalty=body.repetition_penalty or 1.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_logit_bias(body.logit_bias or {}, tokenizer),
        seed=secrets.randbits(62) if body.seed is None else body.seed,
        stop_ids=_stop_ids(body.stop_token_ids or (), tokenizer),
        stop=_stops(body.stop, most=stops),
    )


def _stops(stop: str | list[str] | None, *, most: int) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > most:
        raise bad_value(f"{len(stops)} stop strings; at most {most} are read", param="stop")
    if not all(stops):
        raise bad_value("a stop string is empty: it would stop everything", param="stop")
    return tuple(dict.fromkeys(stops))


def _stop_ids(more: Sequence[int], tokenizer: Tokenizer) -> tuple[int, ...]:
    if more:
        given_ids(tokenizer, more, param="stop_token_ids")
    return tuple(dict.fromkeys([*tokenizer.stop_ids, *more]))


def _logit_bias(bias: dict[str, float], tokenizer: Tokenizer) -> tuple[tuple[int, float], ...]:
    found = []
    for key, value in bias.items():
        if not key.isdecimal() or int(key) >= tokenizer.vocab_size:
            raise bad_value(
                f"logit_bias names token {key!r}; ids are 0 to {tokenizer.vocab_size - 1}",
                param="logit_bias",
            )
        found.append((int(key), value))
    return tuple(found)


def _prompts(
    tokenizer: Tokenizer, prompt: str | list[str] | list[int] | list[list[int]]
) -> list[np.ndarray]:
    """Ids of each prompt; texts begin with the token that begins a text, ids stay as they are."""
    if isinstance(prompt, str):
        return [text_ids(tokenizer, prompt)]
    if not prompt:
        raise bad_value("prompt is an empty list", param="prompt")
    if isinstance(prompt[0], int):
        return [given_ids(tokenizer, [i for i in prompt if isinstance(i, int)], param="prompt")]
    return [
        text_ids(tokenizer, one)
        if isinstance(one, str)
        else given_ids(tokenizer, one, param="prompt")
        for one in prompt
        if not isinstance(one, int)
    ]
