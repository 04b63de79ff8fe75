"""JSON over HTTP to the one server a user named: retries, clear refusals, no redirects.

Proxies of the environment are not used and no redirect is followed: nothing is sent anywhere else.
"""

import contextlib
import email.utils
import http.client
import json
import os
import random
import re
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rung.errors import ConfigError, EngineError

_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:(?P<port>\d{1,5}))?"
    r"(?P<path>(/[A-Za-z0-9._~%-]+)*)/?"
)
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Worth another attempt: the server is full, restarting, or behind a proxy that is."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between attempts, doubled each time
LONGEST_CONNECT = 15.0  # seconds
LONGEST_ORDER = 120.0  # seconds of a Retry-After that are waited for
MAX_REPLY = 64 * 2**20  # bytes


@dataclass(frozen=True)
class Reply:
    """status: of HTTP. body: what the JSON says, None where it is no JSON."""

    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def message(self) -> str:
        """What the server says is wrong, in OpenAI's shape or one of the others in use."""
        told: Any = self.body
        for key in ("error", "message", "detail"):
            if isinstance(told, dict) and key in told:
                told = told[key]
        return (told if isinstance(told, str) else json.dumps(told))[:500] if told else ""

    @property
    def code(self) -> str:
        error = self.body.get("error") if isinstance(self.body, dict) else None
        return str(error.get("code") or "") if isinstance(error, dict) else ""


class _Lost(Exception):
    """No answer came, for a reason that may pass."""


class Server:
    """One server. Threads may ask at once, each over a connection of its own.

    url: as in other OpenAI clients, http://host:port/v1; /v1 is added where there is no path.
    retries: further attempts after one that failed for a reason that may pass. wait(seconds):
    pauses; a stopped server does not.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key_env: str = "",
        timeout: float = 300.0,
        retries: int = 5,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        parts = _URL.fullmatch(url.strip())
        if parts is None:
            raise ConfigError(
                f"url = {url!r}: it must be like http://localhost:8000/v1, without a user name or "
                "query (a key goes into an environment variable, see api_key_env)"
            )
        self._secure = parts["scheme"] == "https"
        self._host = parts["host"].strip("[]")
        self._port = int(parts["port"] or (443 if self._secure else 80))
        self._path = parts["path"] or "/v1"
        self.url = f"{parts['scheme']}://{parts['host']}:{self._port}{self._path}"
        self._key_env, self._key = api_key_env, _read_key(api_key_env)
        self._timeout = timeout
        self._retries = retries
        self._stopped = threading.Event()
        self._wait = wait or self._stopped.wait
        self._mine = threading.local()
        self._live: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()
        self._reached = False

    def get(self, path: str, *, above: bool = False) -> Reply:
        """Any reply but a refusal of the key; EngineError when none comes. above: see `post`."""
        return self._ask("GET", path, None, above)

    def post(self, path: str, body: Mapping[str, Any], *, above: bool = False) -> Reply:
        """As `get`, with `body` as JSON. above: `path` is beside the /v1 of the url, not in it."""
        return self._ask("POST", path, json.dumps(body).encode("utf-8"), above)

    def stop(self) -> None:
        """End what runs, in all threads: they raise EngineError."""
        self._stopped.set()
        with self._lock:
            live = list(self._live)
        for connection in live:
            if connection.sock is not None:
                with contextlib.suppress(OSError):  # closed by the other side
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close all connections; no thread may be asking."""
        with self._lock:
            for connection in self._live:
                connection.close()
            self._live.clear()
        self._mine = threading.local()

    def _ask(self, method: str, path: str, payload: bytes | None, above: bool) -> Reply:
        target = (self._path.removesuffix("/v1") if above else self._path) + path
        for attempt in range(self._retries + 1):
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt) * random.uniform(0.75, 1.25)
            try:
                reply = self._once(method, target, payload)
            except _Lost as lost:
                problem = str(lost)
            else:
                self._reached = True
                if reply.status not in _BUSY or reply.code == "insufficient_quota":
                    return self._checked(reply)
                problem = self._said(reply)
                pause = self._ordered_pause(reply) or pause
            if attempt < self._retries and not self._stopped.is_set():
                self._wait(pause)
            if self._stopped.is_set():
                raise EngineError(f"{self.url}: stopped")
        raise EngineError(
            f"{self.url}: no answer in {self._retries + 1} attempts, the last time {problem}; "
            "look at the server's log, lower concurrency, or raise retries"
        )

    def _once(self, method: str, target: str, payload: bytes | None) -> Reply:
        """One attempt. A connection that was kept open and is dead is opened anew."""
        connection, kept = self._connection()
        try:
            try:
                return self._exchange(connection, method, target, payload)
            except (http.client.HTTPException, OSError) as error:
                connection.close()
                if not kept or isinstance(error, TimeoutError) or self._stopped.is_set():
                    raise
                return self._exchange(connection, method, target, payload)
        except TimeoutError:
            connection.close()
            raise EngineError(
                f"{self.url}: no answer within {self._timeout:g} s (timeout); raise timeout, or "
                "lower max_new_tokens or concurrency"
            ) from None
        except ssl.SSLError as error:
            raise EngineError(
                f"{self.url}: no safe connection ({error}); is it http:// instead of https://, or "
                "a certificate that this machine does not know?"
            ) from None
        except (http.client.HTTPException, OSError) as error:
            connection.close()
            raise self._lost(error) from None

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        target: str,
        payload: bytes | None,
    ) -> Reply:
        headers = {"Accept": "application/json", "User-Agent": "rung"}
        if payload is not None:
            headers["Content-Type"] = "application/json"
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        if connection.sock is None:
            self._open(connection)
        connection.request(method, target, body=payload, headers=headers)
        response = connection.getresponse()
        content = response.read(MAX_REPLY + 1)
        if len(content) > MAX_REPLY:
            raise EngineError(f"{self.url}: the reply is longer than {MAX_REPLY:,} bytes")
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            body = None
        told = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, told, body)

    def _open(self, connection: http.client.HTTPConnection) -> None:
        """Connect: an answer may take minutes, a connection may not."""
        connection.timeout = min(LONGEST_CONNECT, self._timeout)
        try:
            connection.connect()
        except TimeoutError:
            raise EngineError(
                f"{self.url}: no connection within {connection.timeout:g} s; is the address right, "
                "and is there no firewall between?"
            ) from None
        connection.sock.settimeout(self._timeout)

    def _connection(self) -> tuple[http.client.HTTPConnection, bool]:
        """This thread's connection, and whether it is one that was used before."""
        connection = getattr(self._mine, "connection", None)
        if connection is None:
            if self._secure:
                connection = http.client.HTTPSConnection(
                    self._host,
                    self._port,
                    timeout=self._timeout,
                    context=ssl.create_default_context(),
                )
            else:
                connection = http.client.HTTPConnection(
                    self._host, self._port, timeout=self._timeout
                )
            self._mine.connection = connection
            with self._lock:
                self._live.add(connection)
        return connection, connection.sock is not None

    def _lost(self, error: Exception) -> Exception:
        """What a failed connection means: final on first contact, else it may pass."""
        if isinstance(error, ConnectionRefusedError):
            problem = "nothing answers there (connection refused)"
        elif isinstance(error, socket.gaierror):
            problem = f"the host name {self._host!r} is not known"
        else:
            problem = f"the connection broke ({str(error) or type(error).__name__})"
        if self._reached or not isinstance(error, ConnectionRefusedError | socket.gaierror):
            return _Lost(problem)
        return EngineError(f"{self.url}: {problem}; start the server, or correct url")

    def _ordered_pause(self, reply: Reply) -> float | None:
        """Seconds that Retry-After asks for; EngineError when that is too long to wait."""
        seconds = retry_after(reply.headers)
        if seconds is not None and seconds > LONGEST_ORDER:
            raise EngineError(
                f"{self.url}: {self._said(reply)}; the server asks to come back in "
                f"{seconds:,.0f} s, and at most {LONGEST_ORDER:g} s are waited: start again later"
            )
        return seconds

    def _checked(self, reply: Reply) -> Reply:
        """The reply, unless every further request would end the same way."""
        said = self._said(reply)
        if reply.status in (401, 403):
            way_out = (
                f"check the key in the environment variable {self._key_env}"
                if self._key_env
                else "put the key into an environment variable and name that in api_key_env"
            )
            raise EngineError(f"{self.url} refuses the request ({said}); {way_out}")
        if 300 <= reply.status < 400:
            raise EngineError(
                f"{self.url} answers with a redirect to {reply.headers.get('location', '?')}, "
                "which is not followed; name that url if it is yours"
            )
        if reply.code == "insufficient_quota":
            raise EngineError(f"{self.url}: {said}; no further attempt would change that")
        return reply

    def _said(self, reply: Reply) -> str:
        """The server's words, without the key that some repeat."""
        text = f"{reply.status}: {reply.message or 'no reason given'}"
        return text.replace(self._key, "***") if self._key else text

    def refusal(self, reply: Reply, what: str) -> EngineError:
        """The error for a reply that is no success."""
        if reply.status < 300:
            kind = reply.headers.get("content-type", "no type")
            return EngineError(
                f"{self.url}: the answer to {what} is not what an OpenAI-compatible API gives "
                f"({kind}); such a url usually ends in /v1"
            )
        return EngineError(f"{self.url} refuses {what} ({self._said(reply)})")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from `retry-after-ms` or `retry-after` (seconds or a date); None: unsaid."""
    milliseconds, text = headers.get("retry-after-ms"), headers.get("retry-after", "").strip()
    for value, unit in ((milliseconds, 1000.0), (text, 1.0)):
        with contextlib.suppress(TypeError, ValueError):
            seconds = float(value or "") / unit
            return seconds if 0 <= seconds < float("inf") else None
    with contextlib.suppress(TypeError, ValueError):
        when = email.utils.parsedate_to_datetime(text)
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        return max(0.0, (when - datetime.now(UTC)).total_seconds())
    return None


def _read_key(name: str) -> str:
    if not name:
        return ""
    key = os.environ.get(name, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        state = "is not set" if not key else "holds characters that no key has"
        raise ConfigError(
            f"api_key_env = {name!r}: that environment variable {state}; put the server's API key "
            "into it, or leave api_key_env out where the server wants none"
        )
    return key
