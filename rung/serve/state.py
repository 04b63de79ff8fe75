"""What every page and endpoint of the server shares."""

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from fastapi import Request

from rung.engine.service import ServedModel, Service
from rung.serve.bridge import Bridge
from rung.serve.errors import ApiError
from rung.serve.metrics import Metrics
from rung.serve.traffic import TrafficLog
from rung.store.store import Store

T = TypeVar("T")

GENERATES = ("model", "adapter")
"""Kinds of a served model that write text."""


@dataclass(frozen=True)
class Settings:
    """Limits and switches of a server; sizes in bytes, times in seconds.

    api_keys: any of them opens the server; none: it is open, which is for loopback only.
    max_choices: answers that one request may ask for (prompts x n). collect_feedback: whether the
    chat page asks what people think of answers, and keeps it.
    """

    host: str = "127.0.0.1"
    api_keys: tuple[str, ...] = ()
    max_body_bytes: int = 4_000_000
    max_choices: int = 256
    ping_seconds: float = 15.0
    poll_seconds: float = 2.0
    drain_seconds: float = 60.0
    collect_feedback: bool = True


@dataclass
class ServerState:
    """service is None while the models are loaded; closing: finish what runs, take nothing new.

    expects_models: False where only the pages are served.
    """

    store: Store
    settings: Settings = field(default_factory=Settings)
    service: Service | None = None
    traffic: TrafficLog | None = None
    closing: bool = False
    expects_models: bool = True

    def __post_init__(self) -> None:
        self.metrics = Metrics(lambda: self.service)
        # One thread reads all prompts: tokenizers are not made for several at once, and a long
        # text must not hold up the streams of others.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="rung-read")
        self._bridge: Bridge | None = None

    @property
    def engine(self) -> Service:
        """The service; ApiError 503 while there is none, or none any more."""
        if self.closing:
            raise ApiError(503, "the server is shutting down", code="shutting_down", retry_after=2)
        if not self.expects_models:
            message = "no model is served here, only the pages; start with `rung serve NAME`"
            raise ApiError(404, message, code="model_not_found", param="model")
        if self.service is None:
            raise ApiError(503, "the model is being loaded", code="loading", retry_after=2)
        return self.service

    @property
    def bridge(self) -> Bridge:
        """From the engine's thread to this event loop."""
        if self._bridge is None:
            self._bridge = Bridge(asyncio.get_running_loop())
        return self._bridge

    def served(self, name: str | None, *, generates: bool = True) -> ServedModel:
        """The model of a request; ApiError where the name is unknown, or missing and not clear."""
        models = self.engine.models()
        able = [model for model in models if model.kind in GENERATES] if generates else models
        names = ", ".join(model.name for model in able)
        if name is None:
            if len(able) == 1:
                return able[0]
            raise ApiError(400, f"say which model: {names}", code="missing", param="model")
        found = next((model for model in models if model.name == name), None)
        if found is None:
            message = f"no model {name!r} is served here; there is: {names}"
            raise ApiError(404, message, code="model_not_found", param="model")
        if found not in able:
            message = f"{name} is a {found.kind} and writes no text; there is: {names}"
            raise ApiError(400, message, code="unsupported", param="model")
        return found

    async def reading(self, function: Callable[..., T], *args: object, **kwargs: object) -> T:
        """`function` in the thread that reads prompts."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._reader, functools.partial(function, *args, **kwargs)
        )

    def shut(self) -> None:
        """Stop the threads of the server itself."""
        self._reader.shutdown(wait=False, cancel_futures=True)
        if self.traffic is not None:
            self.traffic.close()


def state_of(request: Request) -> ServerState:
    """The state of the server that a request came to."""
    state: ServerState = request.app.state.rung
    return state
