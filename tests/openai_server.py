"""A real HTTP server that speaks OpenAI's API, as far as the remote engine asks; it can fail."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rung.tokens.tokenizer import Tokenizer


class Api:
    """What the server does. tokenizer: behind /tokenize, None = no such path. answer: from a
    request's body to the text. failures: (status, headers, body) given first, one a request to a
    completion. requests: (path, headers, body) of everything that came."""

    def __init__(self, tokenizer: Tokenizer | None = None) -> None:
        self.tokenizer = tokenizer
        self.models: list[str] | None = ["tiny"]
        self.answer: Callable[[dict[str, Any]], str] = lambda body: f" answer {body['seed'] % 9}"
        self.finish = "stop"
        self.takes_ids = True
        self.gives_ids = True
        self.failures: list[tuple[int, dict[str, str], Any]] = []
        self.key = ""
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.url = ""

    def bodies(self, path: str) -> list[dict[str, Any]]:
        return [body for asked, _, body in self.requests if asked == path]

    def reply(self, path: str, headers: dict[str, str], body: Any) -> tuple[int, dict, Any]:
        if self.key and headers.get("authorization") != f"Bearer {self.key}":
            return 401, {}, error(f"Incorrect API key: {headers.get('authorization')}")
        if path == "/v1/models" and self.models is not None:
            return 200, {}, {"object": "list", "data": [{"id": name} for name in self.models]}
        if path == "/tokenize" and self.tokenizer is not None:
            return 200, {}, {"tokens": self.tokenizer.encode(body["prompt"]).tolist()}
        if path not in ("/v1/completions", "/v1/chat/completions"):
            return 404, {}, {"detail": "Not Found"}
        with self.lock:
            if self.failures:
                return self.failures.pop(0)
        chat = path.endswith("chat/completions")
        if not chat and not self.takes_ids and not isinstance(body["prompt"], str):
            return 400, {}, error("prompt must be a text")
        text = self.answer(body) if "seed" in body else ""
        choice: dict[str, Any] = {"index": 0, "finish_reason": self.finish}
        if chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
            if self.gives_ids and self.tokenizer is not None:
                choice["token_ids"] = self.tokenizer.encode(text).tolist()
        return 200, {}, {"choices": [choice], "usage": {"completion_tokens": 7}}


def error(message: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid", "param": None, "code": code}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open
    api: Api

    def do_GET(self) -> None:
        self.serve(None)

    def do_POST(self) -> None:
        self.serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def serve(self, body: Any) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.api.lock:
            self.api.requests.append((self.path, headers, body))
            self.api.at_once += 1
            self.api.most_at_once = max(self.api.most_at_once, self.api.at_once)
        status, more, answer = self.api.reply(self.path, headers, body)
        with self.api.lock:
            self.api.at_once -= 1
        if status == 0:  # the connection breaks
            self.close_connection = True
            return
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        try:
            self.send_response(status)
            more = {"Content-Type": "application/json", **more}
            for name, value in (more | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
        except OSError:  # the client is gone
            self.close_connection = True

    def log_message(self, *_: Any) -> None: ...


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: Any) -> None: ...


@contextmanager
def serving(api: Api) -> Iterator[Api]:
    """`api` at api.url, a free port of this machine."""
    server = _Quiet(("127.0.0.1", 0), type("Bound", (Handler,), {"api": api}))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    api.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield api
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
