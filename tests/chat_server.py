"""The chat page on a small application of its own: models that say what a test wants."""

import asyncio
import contextlib
import json
import socket
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles

from rung.serve.chat import router
from rung.serve.html import STATIC

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
MODELS = {"polite": "9b1f77aa", "base": "41c0ffee"}


@dataclass
class Fake:
    """What the fake API answers and what it was asked. pieces: by model, or for any ("")."""

    pieces: dict[str, list[str]] = field(default_factory=lambda: {"": ["Hello ", "there."]})
    delay: float = 0.0
    finish: str = "stop"
    refusal: tuple[int, str] | None = None
    failing: int = 0  # posts of feedback that are answered by 503 before they are stored
    key: str = ""  # asked for where it is set
    asked: list[dict] = field(default_factory=list)
    left: int = 0  # clients that went away in the middle

    async def stream(self, request, body):
        start = {
            "id": "c1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": body["model"],
        }

        def event(delta, finish=None):
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            return f"data: {json.dumps(start | {'choices': [choice]})}\n\n"

        pieces = self.pieces.get(body["model"], self.pieces.get("", []))
        yield event({"role": "assistant", "content": ""})
        yield ": ping\n\n"
        try:
            for piece in pieces:
                yield event({"content": piece})
                await asyncio.sleep(self.delay)
        except (asyncio.CancelledError, GeneratorExit):
            self.left += 1
            raise
        yield event({}, self.finish)
        usage = {"prompt_tokens": 5, "completion_tokens": len(pieces), "total_tokens": 9}
        yield f"data: {json.dumps(start | {'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"


def build(root, *, collect=True, fake=None, names=MODELS, traffic=None):
    """(application, fake)."""
    fake = fake or Fake()
    application = FastAPI()
    served = [
        SimpleNamespace(name=n, artefact_id=a, context=2048, kind="model", created=0)
        for n, a in names.items()
    ]
    served.append(SimpleNamespace(name="judge", artefact_id="0", context=9, kind="reward-model"))
    application.state.rung = SimpleNamespace(
        engine=SimpleNamespace(models=lambda: served),
        store=SimpleNamespace(root=root),
        settings=SimpleNamespace(collect_feedback=collect),
        traffic=traffic,
    )

    @application.middleware("http")
    async def policy(request, call_next):
        path, said = request.url.path, request.headers.get("authorization")
        is_open = path == "/chat" or path.startswith("/static/")
        if fake.key and not is_open and said != f"Bearer {fake.key}":
            response = JSONResponse({"error": {"message": "no such key"}}, 401)
        elif path == "/chat/feedback" and fake.failing:
            fake.failing -= 1
            response = JSONResponse({"error": {"message": "busy"}}, 503)
        else:
            response = await call_next(request)
        response.headers["Content-Security-Policy"] = CSP
        return response

    @application.post("/v1/chat/completions")
    async def completions(request: Request):
        body = await request.json()
        fake.asked.append(body)
        if fake.refusal:
            status, message = fake.refusal
            message = message.format(model=body["model"])
            return JSONResponse({"error": {"message": message, "type": "x"}}, status)
        return StreamingResponse(fake.stream(request, body), media_type="text/event-stream")

    application.include_router(router)
    application.mount("/static", StaticFiles(directory=STATIC))
    return application, fake


@contextlib.contextmanager
def running(application):
    """The address of the application in a thread of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(application, host="127.0.0.1", port=port, log_level="error", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        thread.join(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
