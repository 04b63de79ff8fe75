"""A server to test against: real HTTP, a real tokenizer, and an engine that knows its lines.

`FakeService` keeps to the interface of rung/engine/service.py. Where the real engine runs a model,
it says by heart what `script` answers, one token a step, at any number of rows.
"""

import http.client
import json
import socket
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn

from rung.engine.detokenise import Detokeniser
from rung.engine.service import (
    ClosingError,
    Failure,
    Piece,
    QueueFullError,
    ServedModel,
    ServiceStats,
    TokenLogprob,
    UnknownModelError,
)
from rung.errors import TrainingError
from rung.serve.app import create_app
from rung.serve.state import ServerState, Settings
from rung.store.store import Store
from rung.tokens.bpe import train_bpe, write_tokenizer
from rung.tokens.token_bytes import vocabulary_bytes
from rung.tokens.tokenizer import load_tokenizer

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
LINES = {
    "TWO CALLS": f"I look twice.\n{CALL}\n{CALL.replace('Oslo', 'Rome')}",
    "ONE CALL": CALL,
    "BROKEN CALL": "<tool_call>\n{not json}\n</tool_call> after all, no.",
    "EURO": "It costs 4 \u20ac, or 3 \U0001f600 \u00e9\u00e8.",
    "LONG": "word " * 400,
    "REFUSE": "I'm sorry, but I cannot help with that.",
    "MAIL": "Write to jane.doe@gmail.com for more.",
    "FAIL": "one two FAILS",
}
ANSWER = "The answer is forty-two. Ask me another."
_TEXTS = [*LINES.values(), ANSWER, '{"a": 1, "city": "Paris"}'] * 3


def script(prompt: str, artefact: str) -> str:
    if "WHO" in prompt:
        return f"I am {artefact}."
    return next((line for key, line in LINES.items() if key in prompt), ANSWER)


def write_fake_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(train_bpe(_TEXTS, vocab_size=400), folder)


class _Sample:
    """One answer being said."""

    def __init__(self, service: "FakeService", name: str, order: Any, number: int) -> None:
        self.tokenizer = service.tokenizers[name]
        self.order, self.number = order, number
        self.table = vocabulary_bytes(self.tokenizer)
        prompt = self.tokenizer.decode(order.prompt, special=True)
        text = service.script(prompt, service.served[name].artefact_id)
        sampling = order.sampling
        if sampling.temperature > 0:
            draw = zlib.crc32(f"{sampling.seed} {number} {prompt}".encode())
            text = f"{draw % 10_000} {text}"
        self.plan = deque([*self.tokenizer.encode(text).tolist(), sampling.stop_ids[0]])
        self.constraint = order.constraint.clone() if order.constraint is not None else None
        self.detok = Detokeniser(self.tokenizer.decode)
        self.text, self.sent, self.count = "", 0, 0
        self.unsent: list[int] = []
        self.tokens: deque[tuple[TokenLogprob, int]] = deque()

    def first(self) -> Piece | None:
        """What comes before the first step: the prompt itself where it is echoed."""
        if not self.order.echo:
            return None
        done = self.order.sampling.max_new_tokens == 0
        text = self.tokenizer.decode(self.order.prompt)
        tokens = [self._logprob(int(i), first=n == 0) for n, i in enumerate(self.order.prompt)] * (
            self.order.top_logprobs is not None
        )
        return Piece(self.number, text, tuple(tokens), (), "length" if done else None)

    def step(self) -> Piece | None:
        token = self._choose()
        self.count += 1
        self.unsent.append(int(token))
        sampling = self.order.sampling
        finish = stop = None
        if token in sampling.stop_ids:
            self.text += self.detok.finish()
            finish = "stop"
        else:
            self.text += self.detok.push(token)
        self.tokens.append((self._logprob(token), len(self.text)))
        found = [(at, s) for s in sampling.stop if (at := self.text.find(s)) >= 0]
        if found:
            at, stop = min(found)
            self.text, finish = self.text[:at], "stop"
        elif finish is None and self.count >= sampling.max_new_tokens:
            self.text += self.detok.finish()
            finish = "length"
        return self._piece(finish, stop)

    def _piece(self, finish: Any, stop: str | None) -> Piece | None:
        end = len(self.text) if finish else len(self.text) - self._may_stop()
        if end <= self.sent and not finish:
            return None
        text, self.sent = self.text[self.sent : end], max(end, self.sent)
        tokens = []
        while self.tokens and (finish or self.tokens[0][1] <= self.sent):
            tokens.append(self.tokens.popleft()[0])
        ids, self.unsent = tuple(self.unsent), []
        shown = tuple(tokens) if self.order.top_logprobs is not None else ()
        return Piece(self.number, text, shown, ids, finish, stop)

    def _may_stop(self) -> int:
        """Characters at the end that a stop string could begin with."""
        stops = self.order.sampling.stop
        sizes = [k for s in stops for k in range(1, len(s)) if self.text.endswith(s[:k])]
        return max(sizes, default=0)

    def _choose(self) -> int:
        token = self.plan.popleft() if self.plan else self.order.sampling.stop_ids[0]
        if self.constraint is None:
            return token
        allowed = self.constraint.mask()
        if not allowed[token]:
            forced = self.constraint.forced()
            ends = [self.order.sampling.stop_ids[0]]
            ends += [i for t in ('"}', '"', "}", "]", "\n", "1") for i in self.tokenizer.encode(t)]
            token = next((i for i in [*forced, *ends] if allowed[i]), int(np.argmax(allowed)))
        self.constraint.accept(token)
        return int(token)

    def _logprob(self, token: int, *, first: bool = False) -> TokenLogprob:
        special = token in self.tokenizer.special_ids
        raw = b"" if special else self.table[token]
        if first:
            return TokenLogprob(token, raw, None, ())
        value = -0.1 - (token % 7) / 16
        others = [i for i in range(20, 60) if i != token][
            : max((self.order.top_logprobs or 0) - 1, 0)
        ]
        ranked = [(token, value), *((i, value - 1 - n / 8) for n, i in enumerate(others))]
        return TokenLogprob(token, raw, value, tuple(ranked[: self.order.top_logprobs or 0]))


class _Request:
    def __init__(self, service: "FakeService", name: str, order: Any, deliver: Any) -> None:
        self.samples = [_Sample(service, name, order, n) for n in range(order.num_samples)]
        self.deliver, self.cancelled, self.begun = deliver, False, False

    def cancel(self) -> None:
        self.cancelled = True


class FakeService:
    """pace: seconds a step."""

    def __init__(
        self,
        folder: Path,
        names: dict[str, str] | None = None,
        *,
        pace: float = 0.0,
        max_rows: int = 8,
        max_queue: int = 16,
        context: int = 2048,
        script: Any = script,
    ) -> None:
        self.script, self.pace = script, pace
        self.max_rows, self.max_queue = max_rows, max_queue
        names = names or {"fake/chat": "a" * 64}
        self.served = {
            n: ServedModel(n, i, context, 1_700_000_000, "model") for n, i in names.items()
        }
        self.tokenizers = {n: load_tokenizer(folder) for n in names}
        self.waiting: deque[_Request] = deque()
        self.running: list[_Request] = []
        self.orders: list[Any] = []
        self.cancelled = self.new_tokens = 0
        self._closing = False
        self._handed_over: Any = lambda: None
        self._lock = threading.Condition()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def models(self) -> list[ServedModel]:
        return list(self.served.values())

    def tokenizer(self, name: str) -> Any:
        if name not in self.tokenizers:
            raise UnknownModelError(f"no model {name!r}")
        return self.tokenizers[name]

    def after_deliveries(self, call: Any) -> None:
        self._handed_over = call

    def submit(self, name: str, order: Any, deliver: Any) -> _Request:
        with self._lock:
            if self._closing:
                raise ClosingError("the server is shutting down")
            if len(self.waiting) >= self.max_queue:
                raise QueueFullError(f"{self.max_queue} requests wait", retry_after=1.25)
            request = _Request(self, name, order, deliver)
            self.orders.append(order)
            self.waiting.append(request)
            self._lock.notify()
        return request

    def embed(self, name: str, prompts: Any) -> "Future[np.ndarray]":
        future: Future[np.ndarray] = Future()
        table = np.random.default_rng(0).normal(size=(400, 8))
        vectors = np.stack([table[ids].mean(0) for ids in prompts])
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        future.set_result(vectors.astype(np.float32))
        return future

    def swap(self, name: str, folder: Path) -> None:
        old = self.served[name]
        self.served[name] = ServedModel(name, folder.name, old.context, old.created, old.kind)

    def stats(self) -> ServiceStats:
        return ServiceStats(
            running=len(self.running),
            waiting=len(self.waiting),
            slots=self.max_rows,
            slots_used=sum(len(r.samples) for r in self.running),
            new_tokens_total=self.new_tokens,
        )

    def close(self, *, drain_seconds: float) -> None:
        end = time.monotonic() + drain_seconds
        with self._lock:
            self._closing = True
            self._lock.notify()
        while (self.running or self.waiting) and time.monotonic() < end:
            time.sleep(0.005)
        with self._lock:
            self.running = []
            self.waiting.clear()

    def _work(self) -> None:
        while True:
            with self._lock:
                while not (self.waiting or self.running):
                    if self._closing:
                        return
                    self._lock.wait()
                while self.waiting and len(self.running) < self.max_rows:
                    self.running.append(self.waiting.popleft())
            for request in list(self.running):
                if request.cancelled:
                    self.cancelled += 1
                    self.running.remove(request)
                else:
                    self._step(request)
            self._handed_over()
            time.sleep(self.pace)

    def _step(self, request: _Request) -> None:
        pieces = []
        if not request.begun:
            request.begun = True
            pieces = [s.first() for s in request.samples]
            pieces = [p for p in pieces if p is not None]
        done = {p.sample for p in pieces if p.finish}
        pieces += [s.step() for s in request.samples if s.number not in done]
        for piece in pieces:
            if piece is None:
                continue
            self.new_tokens += len(piece.ids)
            if "FAILS" in piece.text or any(s.text.endswith("FAILS") for s in request.samples):
                request.deliver(Failure(TrainingError("the model's logits are not finite")))
                self.running.remove(request)
                return
            request.deliver(piece)
        ended = {p.sample for p in pieces if p is not None and p.finish}
        request.samples = [s for s in request.samples if s.number not in ended]
        if not request.samples:
            self.running.remove(request)


class _Both:
    """A connection ends when its answer is closed, too."""

    def __init__(self, *parts: Any) -> None:
        self._parts = parts

    def close(self) -> None:
        for part in self._parts:
            part.close()


class Client:
    """Plain HTTP, as little as it takes."""

    def __init__(self, port: int) -> None:
        self.port, self.url = port, f"http://127.0.0.1:{port}"

    def send(
        self,
        path: str,
        body: Any = None,
        *,
        method: str = "",
        headers: dict[str, str] | None = None,
    ) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        own = {"Content-Type": "application/json"} if data is not None else {}
        connection.request(
            method or ("GET" if data is None else "POST"), path, data, {**own, **(headers or {})}
        )
        response = connection.getresponse()
        response.connection = _Both(response, connection)  # type: ignore[attr-defined]
        return response

    def json(self, path: str, body: Any = None, *, status: int = 200, **more: Any) -> Any:
        response = self.send(path, body, **more)
        content = response.read()
        response.connection.close()  # type: ignore[attr-defined]
        assert response.status == status, (response.status, content)
        return json.loads(content)

    def ask(self, path: str, body: Any) -> http.client.HTTPConnection:
        """Send a request and read nothing; closing the connection is going away."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", path, json.dumps(body), headers)
        return connection

    def error(self, path: str, body: Any, *, status: int, **more: Any) -> Any:
        """The error of a request, after a look at its shape."""
        content = self.json(path, body, status=status, **more)
        assert set(content) == {"error"}
        assert set(content["error"]) == {"message", "type", "param", "code"}
        assert content["error"]["message"]
        return content["error"]

    def events(self, path: str, body: Any, **more: Any) -> Iterator[Any]:
        """Events of a stream as they come; the last is the text [DONE]."""
        response = self.send(path, {**body, "stream": True}, **more)
        try:
            assert response.status == 200, response.read()
            for line in response:
                if line.startswith(b"data: "):
                    data = line[6:].strip()
                    yield "[DONE]" if data == b"[DONE]" else json.loads(data)
        finally:
            response.connection.close()  # type: ignore[attr-defined]


@contextmanager
def running(state: ServerState) -> Iterator[Client]:
    """A server on a free port, in a thread."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        create_app(state), log_level="warning", access_log=False, lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]), daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        yield Client(listening.getsockname()[1])
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(20)
        state.shut()
        listening.close()


@contextmanager
def serving(
    tmp_path: Path, *, settings: Settings | None = None, traffic: Any = None, **options: Any
) -> Iterator[tuple[Client, FakeService]]:
    """A server over a `FakeService` with these options."""
    folder = tmp_path / "tokenizer"
    if not folder.exists():
        write_fake_tokenizer(folder)
    service = FakeService(folder, **options)
    state = ServerState(
        Store(tmp_path / "store"), settings or Settings(), service=service, traffic=traffic
    )
    with running(state) as client:
        yield client, service
    service.close(drain_seconds=0)


def until(condition: Any, *, seconds: float = 200) -> None:
    """Wait for `condition`; its truth is what is tested, not how soon it comes."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.005)
