"""A chat completion under another name: the page compares two models without knowing which."""

import json
from collections.abc import Mapping
from typing import Any

from fastapi import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SCOPE = ("type", "asgi", "http_version", "server", "client", "scheme", "method", "root_path")
_HEADERS = (b"content-type", b"cache-control", b"retry-after", b"x-accel-buffering")
ENDPOINT = "/v1/chat/completions"


class MaskedCompletion(Response):
    """What this server's own /v1/chat/completions answers for `model`, with `alias` for its name.

    The request goes through the whole application again, so keys, limits, errors, streaming and
    the end of a client that leaves are those of the API.
    """

    def __init__(
        self, application: ASGIApp, body: Mapping[str, Any], *, model: str, alias: str
    ) -> None:
        super().__init__()
        self.application = application
        self.payload = json.dumps({**body, "model": model}).encode()
        self.model, self.alias = model, alias

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kept = [(k, v) for k, v in scope["headers"] if k != b"content-length"]
        inner = {key: scope[key] for key in _SCOPE if key in scope} | {
            "path": ENDPOINT,
            "raw_path": ENDPOINT.encode(),
            "query_string": b"",
            "headers": [*kept, (b"content-length", str(len(self.payload)).encode())],
            "state": {},
        }
        await self.application(inner, self._body_first(receive), _Mask(self, send).send)

    def _body_first(self, receive: Receive) -> Receive:
        """The new body, then what the outer request still gets: that the client left."""
        waiting: list[Message] = [
            {"type": "http.request", "body": self.payload, "more_body": False}
        ]

        async def next_message() -> Message:
            return waiting.pop() if waiting else await receive()

        return next_message

    def mask(self, text: bytes) -> bytes:
        """A line of the stream, or a whole answer, without the model's name."""
        head, body = (b"data: ", text[6:]) if text.startswith(b"data: ") else (b"", text)
        try:
            said = json.loads(body)
        except ValueError:
            return text  # "[DONE]", a blank line, a comment
        if not isinstance(said, dict):
            return text
        said.pop("system_fingerprint", None)
        if "model" in said:
            said["model"] = self.alias
        error = said.get("error")
        if isinstance(error, dict) and isinstance(error.get("message"), str):
            error["message"] = error["message"].replace(self.model, self.alias)
        end = b"\n" if text.endswith(b"\n") else b""
        return head + json.dumps(said, ensure_ascii=False).encode() + end


class _Mask:
    """Masks whole lines as they come; a line may lie in several messages."""

    def __init__(self, response: MaskedCompletion, send: Send) -> None:
        self.response, self.outer, self.half = response, send, b""
        self.streams = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [(k, v) for k, v in message["headers"] if k.lower() in _HEADERS]
            self.streams = any(v.startswith(b"text/event-stream") for _, v in headers)
            message = {**message, "headers": headers}
        elif message["type"] == "http.response.body":
            last = not message.get("more_body", False)
            self.half += message.get("body", b"")
            at = len(self.half) if last else self.half.rfind(b"\n") + 1 if self.streams else 0
            whole, self.half = self.half[:at], self.half[at:]
            parts = whole.splitlines(keepends=True) if self.streams else [whole]
            message = {**message, "body": b"".join(map(self.response.mask, parts))}
        await self.outer(message)
