"""What every request passes: key, host, origin, size; and what every answer carries.

Plain ASGI: a middleware that wraps requests in objects would stand between a client that goes
away and the slot it should free.
"""

import asyncio
import json
import secrets
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rung.serve.errors import ApiError
from rung.serve.keys import is_allowed
from rung.serve.state import ServerState

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; font-src 'self'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", CSP.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
OPEN = ("/health", "/static/", "/favicon.ico")
"""Paths without a key: nothing of the user's is behind them."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_READS = ("GET", "HEAD", "OPTIONS")


class Guard:
    """The outermost layer of the server."""

    def __init__(self, app: ASGIApp, *, state: ServerState) -> None:
        self.app = app
        self.state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no websockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        await _Passage(self, scope, receive, send).run()


class _Passage:
    """One request on its way through."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self.guard, self.scope = guard, scope
        self._receive, self._send = receive, send
        self.id = f"req_{secrets.token_hex(12)}"
        self.status = 499  # nothing was sent: the client went away
        self.read = 0

    async def run(self) -> None:
        state, scope = self.guard.state, self.scope
        begin = time.perf_counter()
        try:
            self._check(scope)
            await self.guard.app(scope, self.receive, self.send)
        except ApiError as error:
            await self._refuse(error)
        except asyncio.CancelledError:  # uvicorn does, to what outlasts the time to drain
            if not state.closing:
                raise
        except Exception as error:
            # The frames say where; the message could quote a prompt.
            frames = "".join(traceback.format_tb(error.__traceback__))
            print(f"{self.id} {type(error).__name__}\n{frames}", file=sys.stderr)
            if self.status == 499:
                message = f"internal error in request {self.id}; the server's output has the place"
                await self._refuse(ApiError(500, message, code="internal_error"))
            # else the answer had begun: uvicorn closes the connection, and the client sees a cut
        finally:
            route = scope.get("route")
            endpoint = getattr(route, "path", "other")
            state.metrics.requests.labels(endpoint, str(self.status)).inc()
            state.metrics.seconds.labels(endpoint).observe(time.perf_counter() - begin)

    def _check(self, scope: Scope) -> None:
        settings = self.guard.state.settings
        headers = dict(scope["headers"])
        check_host(headers, bound=settings.host)
        check_origin(headers, method=scope["method"])
        free = any(
            scope["path"] == p or (p[-1] == "/" and scope["path"].startswith(p)) for p in OPEN
        )
        if settings.api_keys and not free and not is_allowed(headers, settings.api_keys):
            shown = "the API key is wrong" if _shows_key(headers) else "no API key was given"
            raise ApiError(
                401, f"{shown}; send `Authorization: Bearer KEY`", code="invalid_api_key"
            )
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > settings.max_body_bytes:
            raise ApiError(413, self._too_large(int(length)), code="request_too_large")

    def _too_large(self, size: int) -> str:
        limit = self.guard.state.settings.max_body_bytes
        return f"the request has {size:,} bytes, at most {limit:,} are read; send less at once"

    async def receive(self) -> Message:
        message = await self._receive()
        self.read += len(message.get("body", b""))
        if self.read > self.guard.state.settings.max_body_bytes:
            raise HTTPException(413, self._too_large(self.read))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = list(message.get("headers", []))
            # A fenced page brings a policy of its own; a browser would enforce both.
            has = {name.lower() for name, _ in given}
            own = [(name, value) for name, value in _HEADERS if name not in has]
            own.append((b"x-request-id", self.id.encode()))
            message = {**message, "headers": [*given, *own]}
        await self._send(message)

    async def _refuse(self, error: ApiError) -> None:
        headers = dict(self.scope["headers"])
        extra = dict(error.headers)
        if error.status == 401:
            # A browser asks its user for the password, once, and sends it with all that follows.
            page = b"text/html" in headers.get(b"accept", b"")
            extra["www-authenticate"] = 'Basic realm="rung"' if page else "Bearer"
        await respond_json(self.send, error.status, error.body, extra)


async def respond_json(
    send: Send, status: int, body: dict[str, Any], headers: Mapping[str, str]
) -> None:
    content = json.dumps(body).encode()
    pairs = {"content-type": "application/json", "content-length": str(len(content)), **headers}
    encoded = [(key.encode("latin-1"), value.encode("latin-1")) for key, value in pairs.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": content})


def check_host(headers: Mapping[bytes, bytes], *, bound: str) -> None:
    """ApiError 403 for a name that is not this machine's, on a server bound to loopback.

    A page from elsewhere can make its own name point at 127.0.0.1 (DNS rebinding); its requests
    then count as same-origin. A server bound wider knows not its names, and asks for a key.
    """
    if bound not in LOOPBACK:
        return
    host = headers.get(b"host", b"").decode("latin-1").lower()
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name not in LOOPBACK:
        raise ApiError(
            403,
            f"host {host!r} is not this machine: a server bound to {bound} answers to "
            f"{', '.join(LOOPBACK)}",
            code="wrong_host",
        )


def check_origin(headers: Mapping[bytes, bytes], *, method: str) -> None:
    """ApiError 403 where a page of another origin wants something done: CORS is off."""
    origin = headers.get(b"origin")
    if method in _READS or origin is None:
        return
    host = headers.get(b"host", b"").lower()
    if origin.lower().partition(b"://")[2] != host:
        raise ApiError(
            403,
            f"a page from {origin.decode('latin-1')!r} may not use this server; "
            "CORS is off: call it from your own program, or from its own pages",
            code="cross_origin",
        )


def _shows_key(headers: Mapping[bytes, bytes]) -> bool:
    return b"authorization" in headers or b"x-api-key" in headers
