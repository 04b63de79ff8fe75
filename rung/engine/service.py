"""What a server asks of an engine: the interface only, the engine replaces this file."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rung.engine.sampling import Sampling
from rung.errors import RungError
from rung.tokens.tokenizer import Tokenizer


class UnknownModelError(RungError):
    """No model of this name is served."""


class QueueFullError(RungError):
    """As many requests wait as may; retry_after in seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ClosingError(RungError):
    """The service finishes what runs and takes nothing new."""


class RequestError(RungError):
    """A value of the request is wrong; param names it."""

    def __init__(self, message: str, param: str = "") -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True)
class TokenLogprob:
    id: int
    raw: bytes
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    sample: int
    text: str
    tokens: tuple[TokenLogprob, ...]
    num_tokens: int
    finish: Literal["stop", "length"] | None
    stop: str | None = None


@dataclass(frozen=True)
class Failure:
    error: RungError


@dataclass(frozen=True)
class Order:
    prompt: np.ndarray
    sampling: Sampling
    num_samples: int = 1
    best_of: int = 0
    top_logprobs: int | None = None
    echo: bool = False
    constraint: Any = None


@dataclass(frozen=True)
class ServedModel:
    name: str
    artefact_id: str
    context: int
    created: int
    kind: str


@dataclass(frozen=True)
class ServiceOptions:
    max_rows: int = 32
    max_queue: int = 256


@dataclass(frozen=True)
class ServiceStats:
    running: int = 0
    waiting: int = 0
    slots: int = 0
    slots_used: int = 0
    kv_tokens: int = 0
    prompt_tokens_total: int = 0
    new_tokens_total: int = 0
    prefix_hits_total: int = 0


class Ticket:
    def cancel(self) -> None:
        raise NotImplementedError


class Service:
    @classmethod
    def open(cls, models: Mapping[str, Path], *, options: ServiceOptions) -> "Service":
        raise NotImplementedError

    def models(self) -> list[ServedModel]:
        raise NotImplementedError

    def tokenizer(self, name: str) -> Tokenizer:
        raise NotImplementedError

    def submit(self, name: str, order: Order, deliver: Callable[[Piece | Failure], None]) -> Ticket:
        raise NotImplementedError

    def embed(self, name: str, prompts: Sequence[np.ndarray]) -> "Future[np.ndarray]":
        raise NotImplementedError

    def swap(self, name: str, folder: Path) -> None:
        raise NotImplementedError

    def stats(self) -> ServiceStats:
        raise NotImplementedError

    def close(self, *, drain_seconds: float) -> None:
        raise NotImplementedError
