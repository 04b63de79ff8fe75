"""An HTTP client that takes next to no processor time from the server beside it.

One connection a request. While bytes arrive they are kept with their times and nothing else is
done: they are read as HTTP and as events when the answer is there, or when all answers are.
"""

import asyncio
import json
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Address = tuple[str, int]


class Exchange(asyncio.Protocol):
    """A request and what came back. times: of each part that arrived, seconds (perf_counter)."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._transport: asyncio.Transport | None = None
        self.parts: list[bytes] = []
        self.times: list[float] = []
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.times.append(time.perf_counter())
        self.parts.append(data)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)

    def abort(self) -> None:
        """Go away at once, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()


@dataclass(frozen=True)
class Answer:
    """What one client saw. began, ended: seconds (perf_counter). aborted: it left before the end.
    parts, times: bytes as they arrived."""

    began: float
    ended: float
    aborted: bool
    parts: list[bytes]
    times: list[float]

    @cached_property
    def _halves(self) -> tuple[bytes, bytes]:
        head, _, body = b"".join(self.parts).partition(b"\r\n\r\n")
        return head, body

    @cached_property
    def status(self) -> int:
        """0 where the connection ended before an answer began."""
        words = self._halves[0].split(b" ", 2)
        return int(words[1]) if len(words) > 1 else 0

    @cached_property
    def headers(self) -> dict[str, str]:
        lines = self._halves[0].decode("latin-1").split("\r\n")[1:]
        pairs = [line.partition(":") for line in lines]
        return {name.strip().lower(): value.strip() for name, _, value in pairs}

    @cached_property
    def body(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            return join_chunks(self._halves[1])
        return self._halves[1]

    @cached_property
    def json(self) -> Any:
        """The body, None where it is no JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    @cached_property
    def events(self) -> list[Any]:
        """Of a stream: JSON of each event, and the text "[DONE]"."""
        datas = [
            line[len(b"data: ") :] for line in self.body.split(b"\n\n") if line[:6] == b"data: "
        ]
        return [data.decode() if data == b"[DONE]" else json.loads(data) for data in datas]

    @property
    def event_times(self) -> list[float]:
        """When each event of the stream arrived."""
        return times_of_events(self.parts, self.times)

    @property
    def streamed(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    @property
    def new_tokens(self) -> int:
        """What the answer's usage says; of a stream the last event before the end has it. 0 where
        there is none, as in a stream that failed."""
        last = (self.events[-2:-1] or [None])[0] if self.streamed else self.json
        usage = last.get("usage") if isinstance(last, dict) else None
        return int(usage["completion_tokens"]) if usage else 0


def join_chunks(raw: bytes) -> bytes:
    """The body behind HTTP's chunked coding; what is cut off at the end is left out."""
    found, at = [], 0
    while (end := raw.find(b"\r\n", at)) > at:
        size = int(raw[at:end], 16)
        if size == 0:
            break
        found.append(raw[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return b"".join(found)


def times_of_events(parts: list[bytes], times: list[float]) -> list[float]:
    """When each event ended; an event ends with an empty line, which no JSON holds."""
    found: list[float] = []
    before = b""
    for part, at in zip(parts, times, strict=True):
        whole = before + part
        found += [at] * whole.count(b"\n\n")
        before = b"\n" if whole.endswith(b"\n") and not whole.endswith(b"\n\n") else b""
    return found


def post(path: str, body: bytes, address: Address) -> bytes:
    """A request's bytes."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body


async def open_exchange(address: Address, request: bytes) -> Exchange:
    """Send a request; what comes back gathers in the Exchange until its `over` is done."""
    loop = asyncio.get_running_loop()
    _, exchange = await loop.create_connection(lambda: Exchange(request), *address)
    return exchange


async def ask(address: Address, request: bytes, *, leave_after: float | None = None) -> Answer:
    """Send a request, wait for the end of its answer. leave_after: seconds; then the client goes
    away where the answer is not there yet."""
    began = time.perf_counter()
    try:
        exchange = await open_exchange(address, request)
    except OSError:
        return Answer(began, time.perf_counter(), False, [], [])
    aborted = False
    try:
        async with asyncio.timeout(leave_after):
            await asyncio.shield(exchange.over)
    except TimeoutError:
        aborted = True
    finally:
        exchange.abort()
    return Answer(began, time.perf_counter(), aborted, exchange.parts, exchange.times)


async def ask_json(address: Address, path: str, body: Any, **more: Any) -> Answer:
    return await ask(address, post(path, json.dumps(body).encode(), address), **more)
