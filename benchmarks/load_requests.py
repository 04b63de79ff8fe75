"""What clients ask of the server: alike, of many kinds, and wrong in many ways."""

import json
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from light_client import Answer
from served import CONTEXT, NAME, made_up_words

FIRST_ID = 6  # the special tokens come before; a text never holds them
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
Body = dict[str, Any]
SCHEMA: Body = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "kind": {"enum": ["plant", "animal", "stone"]},
        "sure": {"type": "boolean"},
    },
    "required": ["name", "kind", "sure"],
    "additionalProperties": False,
}


def completions(num: int, *, vocab: int, prompt: int, new: int, seed: int) -> list[Body]:
    """Streams of /v1/completions: random ids, plain sampling, a seed each; the same by seed."""
    rng = np.random.default_rng(seed)
    return [
        {
            "model": NAME,
            "prompt": rng.integers(FIRST_ID, vocab, prompt).tolist(),
            "max_tokens": new,
            "temperature": 1.0,
            "seed": 1000 * seed + number,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for number in range(num)
    ]


class Wanted(NamedTuple):
    """A request and what is right about its answer: one of the statuses, so many choices."""

    kind: str
    path: str
    body: bytes
    statuses: tuple[int, ...] = (200,)
    choices: int = 1


class Mix:
    """Requests at random, as many clients of one server would send them."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._words = made_up_words(2000)
        self._kinds: dict[Callable[[], Wanted], float] = {
            self._chat: 30,
            self._completion: 20,
            self._several: 12,
            self._logprobs: 12,
            self._scored: 6,
            self._schema: 8,
            self._embeddings: 10,
            self._tokenize: 2,
        }

    def draw(self) -> Wanted:
        """A request that the server should answer."""
        return self._rng.choices(list(self._kinds), list(self._kinds.values()))[0]()

    def draw_malformed(self) -> Wanted:
        """A request that it should refuse."""
        return self._rng.choice(MALFORMED)

    def _text(self, most: int = 400) -> str:
        num = min(most, max(1, round(self._rng.lognormvariate(3.0, 1.0))))
        return " ".join(self._rng.choices(self._words, k=num))

    def _length(self) -> int:
        return min(300, max(1, round(self._rng.lognormvariate(3.7, 0.8))))

    def _sampled(self, **more: Any) -> Body:
        """Settings of an answer, streaming or not, some of them with penalties or stop texts."""
        body: Body = {"model": NAME, "max_tokens": self._length(), **more}
        if self._rng.random() < 0.6:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        body |= self._rng.choice(
            [
                {"temperature": 0},
                {"temperature": 0.7, "top_p": 0.9},
                {"seed": self._rng.randrange(2**40)},
                {"frequency_penalty": 0.5, "presence_penalty": 0.2},
                {"stop": ["zan", self._rng.choice(self._words)]},
                {"top_k": 40, "min_p": 0.01, "logit_bias": {"300": -100}},
            ]
        )
        return body

    def _messages(self) -> list[Body]:
        turns = [{"role": "system", "content": self._text(20)}] * (self._rng.random() < 0.3)
        for _ in range(self._rng.choice([0, 0, 1, 2])):
            turns.append({"role": "user", "content": self._text(100)})
            turns.append({"role": "assistant", "content": self._text(100)})
        return [*turns, {"role": "user", "content": self._text()}]

    def _chat(self) -> Wanted:
        return _wanted("chat", CHAT, self._sampled(messages=self._messages()))

    def _completion(self) -> Wanted:
        return _wanted("completion", COMPLETIONS, self._sampled(prompt=self._text()))

    def _several(self) -> Wanted:
        n = self._rng.randint(2, 4)
        if self._rng.random() < 0.3:
            body = self._sampled(prompt=[self._text(50) for _ in range(n)])
            return _wanted("several prompts", COMPLETIONS, body, choices=n)
        return _wanted("n > 1", CHAT, self._sampled(messages=self._messages(), n=n), choices=n)

    def _logprobs(self) -> Wanted:
        if self._rng.random() < 0.5:
            body = self._sampled(prompt=self._text(), logprobs=self._rng.randint(0, 5))
            return _wanted("logprobs", COMPLETIONS, body)
        top = self._rng.randint(0, 20)
        body = self._sampled(messages=self._messages(), logprobs=True, top_logprobs=top)
        return _wanted("logprobs", CHAT, body)

    def _scored(self) -> Wanted:
        body = {"model": NAME, "prompt": self._text(), "echo": True, "logprobs": 1}
        return _wanted("scored", COMPLETIONS, {**body, "max_tokens": self._rng.randint(0, 2)})

    def _schema(self) -> Wanted:
        form = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}
        body = self._sampled(messages=self._messages(), response_format=form)
        return _wanted("schema", CHAT, {**body, "stop": None, "max_tokens": 120})

    def _embeddings(self) -> Wanted:
        num = self._rng.choice([1, 1, 4, 16])
        body = {"model": NAME, "input": [self._text(200) for _ in range(num)]}
        body["encoding_format"] = self._rng.choice(["float", "base64"])
        return _wanted("embeddings", EMBEDDINGS, body, choices=num)

    def _tokenize(self) -> Wanted:
        return _wanted("tokenize", "/tokenize", {"model": NAME, "prompt": self._text()})


def _wanted(kind: str, path: str, body: Body, *, choices: int = 1) -> Wanted:
    return Wanted(kind, path, json.dumps(body).encode(), choices=choices)


def _wrong(kind: str, path: str, body: Body | bytes, *statuses: int) -> Wanted:
    content = body if isinstance(body, bytes) else json.dumps({"model": NAME, **body}).encode()
    return Wanted(f"malformed: {kind}", path, content, statuses or (400,))


_ASKED = [{"role": "user", "content": "hello"}]
MALFORMED = [
    _wrong("cut JSON", CHAT, b'{"model": "load", "messages": [{"role": "us'),
    _wrong("no JSON", COMPLETIONS, b"prompt=hello"),
    _wrong("empty body", CHAT, b""),
    _wrong("a list", CHAT, b"[1, 2, 3]"),
    _wrong("null", COMPLETIONS, b"null"),
    _wrong("no UTF-8", CHAT, b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}'),
    _wrong("deep nesting", CHAT, b'{"messages": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
    _wrong("long number", COMPLETIONS, b'{"prompt": "a", "max_tokens": ' + b"9" * 6000 + b"}"),
    _wrong("NaN", COMPLETIONS, b'{"prompt": "a", "temperature": NaN}'),
    _wrong("infinity", COMPLETIONS, b'{"prompt": "a", "temperature": 1e999}'),
    _wrong("half a character", CHAT, b'{"messages": [{"role": "user", "content": "\\ud800"}]}'),
    _wrong("half a character", COMPLETIONS, b'{"prompt": "\\udfff"}'),
    _wrong("half a character", EMBEDDINGS, b'{"input": "\\udfff"}'),
    _wrong("unknown model", CHAT, {"model": "nobody", "messages": _ASKED}, 404),
    _wrong("unknown model", EMBEDDINGS, {"model": "nobody", "input": "a"}, 404),
    _wrong("unknown path", "/v1/nothing", {}, 404),
    _wrong("no messages", CHAT, {"messages": []}),
    _wrong("messages a text", CHAT, {"messages": "hello"}),
    _wrong("message a text", CHAT, {"messages": ["hello"]}),
    _wrong("unknown role", CHAT, {"messages": [{"role": "wizard", "content": "a"}]}),
    _wrong("content a number", CHAT, {"messages": [{"role": "user", "content": 5}]}),
    _wrong("no prompt", COMPLETIONS, {}),
    _wrong("empty prompts", COMPLETIONS, {"prompt": []}),
    _wrong("mixed prompt", COMPLETIONS, {"prompt": ["a", 5]}),
    _wrong("foreign ids", COMPLETIONS, {"prompt": [5, 10**9]}),
    _wrong("negative id", COMPLETIONS, {"prompt": [-1]}),
    _wrong("prompt too long", COMPLETIONS, {"prompt": [7] * (CONTEXT + 1)}),
    _wrong("prompt too long", CHAT, {"messages": [{"role": "user", "content": "1 " * 9000}]}),
    _wrong("input too long", EMBEDDINGS, {"input": "1 " * 9000}),
    _wrong("negative max_tokens", COMPLETIONS, {"prompt": "a", "max_tokens": -5}),
    _wrong("max_tokens 0", CHAT, {"messages": _ASKED, "max_tokens": 0}),
    _wrong("n 0", CHAT, {"messages": _ASKED, "n": 0}),
    _wrong("n too many", CHAT, {"messages": _ASKED, "n": 100_000}),
    _wrong("temperature a text", CHAT, {"messages": _ASKED, "temperature": "hot"}),
    _wrong("temperature -1", COMPLETIONS, {"prompt": "a", "temperature": -1}),
    _wrong("top_p 7", COMPLETIONS, {"prompt": "a", "top_p": 7}),
    _wrong("stream a text", CHAT, {"messages": _ASKED, "stream": "yes"}),
    _wrong("options without stream", CHAT, {"messages": _ASKED, "stream_options": {}}),
    _wrong("seed too large", COMPLETIONS, {"prompt": "a", "seed": 2**80}),
    _wrong("too many stops", CHAT, {"messages": _ASKED, "stop": ["a"] * 40}),
    _wrong("empty stop", COMPLETIONS, {"prompt": "a", "stop": ""}),
    _wrong("top_logprobs 99", CHAT, {"messages": _ASKED, "logprobs": True, "top_logprobs": 99}),
    _wrong("logprobs 99", COMPLETIONS, {"prompt": "a", "logprobs": 99}),
    _wrong("biased stranger", COMPLETIONS, {"prompt": "a", "logit_bias": {"99999999": 1}}),
    _wrong("no such format", CHAT, {"messages": _ASKED, "response_format": {"type": "poem"}}),
    _wrong(
        "bad schema",
        CHAT,
        {
            "messages": _ASKED,
            "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "no"}}},
        },
    ),
    _wrong("bad tools", CHAT, {"messages": _ASKED, "tools": [{"type": "magic"}]}),
    _wrong("suffix", COMPLETIONS, {"prompt": "a", "suffix": "b"}),
    _wrong("no input", EMBEDDINGS, {"input": []}),
    _wrong("input a number", EMBEDDINGS, {"input": 5}),
    _wrong("odd encoding", EMBEDDINGS, {"input": "a", "encoding_format": "roman"}),
    _wrong("too large", CHAT, b" " * 4_100_000, 413),
]


def fault(wanted: Wanted, answer: Answer) -> str:
    """What is wrong with an answer, "" where nothing is. Who went away gets none."""
    if answer.aborted:
        return ""
    if answer.status not in wanted.statuses:
        shown = answer.body[:200].decode("utf-8", "replace")
        return f"{wanted.kind}: status {answer.status}, not {wanted.statuses}: {shown}"
    if answer.status != 200:
        return "" if is_error(answer.json) else f"{wanted.kind}: no error in OpenAI's shape"
    told = _fault_of_answer(wanted, answer)
    return f"{wanted.kind}: {told}" if told else ""


def is_error(value: Any) -> bool:
    """{"error": {"message", "type", "param", "code"}}, as OpenAI's clients read it."""
    error = value.get("error") if isinstance(value, dict) else None
    if not isinstance(error, dict) or not {"message", "type", "param", "code"} <= error.keys():
        return False
    return all(isinstance(error[key], str) and error[key] for key in ("message", "type"))


def _fault_of_answer(wanted: Wanted, answer: Answer) -> str:
    if wanted.kind == "tokenize":
        return "" if answer.json and answer.json.get("tokens") else "no tokens"
    if wanted.kind == "embeddings":
        found = (answer.json or {}).get("data", [])
        return "" if len(found) == wanted.choices else f"{len(found)} vectors"
    if answer.streamed:
        return _fault_of_stream(wanted, answer.events)
    choices = (answer.json or {}).get("choices", [])
    if len(choices) != wanted.choices:
        return f"{len(choices)} choices of {wanted.choices}"
    if not all(choice["finish_reason"] in ("stop", "length") for choice in choices):
        return "a choice without an end"
    if wanted.kind == "schema" and choices[0]["finish_reason"] == "stop":
        return "" if fits(choices[0]["message"]["content"]) else "not what the schema says"
    return ""


def fits(text: str) -> bool:
    """Whether a text is JSON of SCHEMA, as far as its keys."""
    try:
        thing = json.loads(text)
    except ValueError:
        return False
    return isinstance(thing, dict) and thing.keys() == SCHEMA["properties"].keys()


def _fault_of_stream(wanted: Wanted, events: list[Any]) -> str:
    if not events or events[-1] != "[DONE]":
        return "the stream broke off"
    if failed := [event for event in events[:-1] if "error" in event]:
        return f"an error in the stream: {failed[0]}"
    ended = [c["index"] for event in events[:-1] for c in event["choices"] if c["finish_reason"]]
    if sorted(ended) != list(range(wanted.choices)):
        return f"the ends of choices {ended}, of {wanted.choices}"
    return "" if events[-2].get("usage") else "no usage at the end"
