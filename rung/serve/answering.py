"""Orders at work for one HTTP request: pieces as they come, and an end when the client goes."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from rung.engine.service import Failure, Piece, Ticket
from rung.errors import RungError
from rung.serve.bridge import Bridge, Inbox
from rung.serve.errors import as_api_error
from rung.serve.openai_shapes import DONE, PING, event
from rung.serve.orders import Plan
from rung.serve.state import ServerState

T = TypeVar("T")
Json = dict[str, Any]
STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class Writer(Protocol):
    """What turns pieces into the answer of an endpoint, whole or in chunks."""

    def begin(self) -> list[Json]:
        """Chunks before the first text."""

    def push(self, order: int, piece: Piece) -> list[Json]:
        """Chunks of a piece."""

    def end(self) -> list[Json]:
        """Chunks after the last text."""

    def whole(self) -> Json:
        """The answer in one, when all pieces are in."""

    def close(self, seconds: float, first_token_seconds: float | None) -> None:
        """The request is over, also when the client went away before the end."""


class Answers:
    """The pieces of all orders of a request, in the order the engine gives them."""

    def __init__(self, state: ServerState, plan: Plan) -> None:
        self._state, self._plan = state, plan
        self._inbox = Inbox()
        self._open = sum(order.num_samples for order in plan.orders)
        self._tickets: list[Ticket] = []
        self._begin = time.perf_counter()
        self._last: dict[tuple[int, int], float] = {}
        self._failure: Failure | None = None
        self.first_token_seconds: float | None = None

    @property
    def done(self) -> bool:
        return self._open == 0

    @property
    def seconds(self) -> float:
        """Since the orders were given."""
        return time.perf_counter() - self._begin

    def submit(self) -> None:
        """Give the orders to the engine: all, or none."""
        service, bridge = self._state.engine, self._state.bridge
        service.after_deliveries(bridge.wake)
        try:
            for number, order in enumerate(self._plan.orders):
                deliver = self._deliver(bridge, number)
                self._tickets.append(service.submit(self._plan.model.name, order, deliver))
        except BaseException:
            self.cancel()
            raise

    def _deliver(self, bridge: Bridge, number: int) -> Callable[[Piece | Failure], None]:
        def deliver(what: Piece | Failure) -> None:
            last = isinstance(what, Failure) or what.finish is not None
            bridge.post(self._inbox, (number, what), urgent=last)

        return deliver

    def cancel(self) -> None:
        """Free the slots of what has not ended."""
        if not self.done:
            for ticket in self._tickets:
                ticket.cancel()
        self._tickets = []

    async def take(self, *, timeout: float | None = None) -> list[tuple[int, Piece]]:
        """What came since the last time; [] when nothing came within `timeout` seconds. Raises
        what failed, when what came before it has been taken."""
        if self._failure is not None:
            raise self._failure.error
        found: list[tuple[int, Piece]] = []
        for number, what in await self._inbox.take(timeout=timeout):
            if isinstance(what, Failure):
                self._failure = what
                break
            self._open -= what.finish is not None
            self._measure(number, what)
            found.append((number, what))
        if self._failure is not None and not found:
            raise self._failure.error
        return found

    def _measure(self, number: int, piece: Piece) -> None:
        now = time.perf_counter()
        key = (number, piece.sample)
        metrics = self._state.metrics
        if self.first_token_seconds is None:
            self.first_token_seconds = now - self._begin
            metrics.first_token.observe(self.first_token_seconds)
        if key in self._last:
            metrics.gap.observe(now - self._last[key])
        self._last[key] = now


async def respond(
    request: Request, state: ServerState, plan: Plan, writer: Writer, *, stream: bool
) -> Response:
    """The answer to a request whose orders are made: a stream of events, or one object.

    What fails before the first text has a status of its own, also of a stream.
    """
    answers = Answers(state, plan)
    with _closing(answers, writer) as keep_open:
        answers.submit()
        if stream:
            first = await or_gone(request, answers.take(timeout=state.settings.ping_seconds))
            if first is None:
                return Response(status_code=499)
            keep_open()
            return EventStream(_events(state, answers, writer, first), answers, writer)
        whole = await or_gone(request, _collect(answers, writer))
        return Response(status_code=499) if whole is None else JSONResponse(whole)


@contextmanager
def _closing(answers: Answers, writer: Writer) -> Any:
    """Ends the orders with the block, unless a stream goes on with them."""
    mine = True

    def keep_open() -> None:
        nonlocal mine
        mine = False

    try:
        yield keep_open
    finally:
        if mine:
            answers.cancel()
            writer.close(answers.seconds, answers.first_token_seconds)


async def _collect(answers: Answers, writer: Writer) -> Json:
    while not answers.done:
        for number, piece in await answers.take():
            writer.push(number, piece)
    return writer.whole()


async def _events(
    state: ServerState,
    answers: Answers,
    writer: Writer,
    first: Sequence[tuple[int, Piece]],
) -> AsyncIterator[bytes]:
    """Events of the stream; those of pieces that came together travel together."""
    yield b"".join(map(event, writer.begin()))
    pieces = first
    try:
        while True:
            chunks = [chunk for number, piece in pieces for chunk in writer.push(number, piece)]
            if chunks:
                yield b"".join(map(event, chunks))
            if answers.done:
                break
            pieces = await answers.take(timeout=state.settings.ping_seconds)
            if not pieces:
                yield PING
    except RungError as error:
        yield event(as_api_error(error).body) + DONE
        return
    yield b"".join(map(event, writer.end())) + DONE


async def or_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """What `work` gives; None when the client went away before."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_until_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        for future in (task, gone):
            future.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events, ended at once when the client goes away, whatever is awaited."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], answers: Answers, writer: Writer) -> None:
        super().__init__(headers=STREAM_HEADERS)
        del self.headers["content-length"]
        self._events, self._answers, self._writer = events, answers, writer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            self._answers.cancel()
            for task in (sending, gone):
                task.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)
            self._writer.close(self._answers.seconds, self._answers.first_token_seconds)

    async def _send(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        async for chunk in self._events:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
