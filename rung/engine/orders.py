"""What a program asks of a running service, and what it gets. No torch here."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from rung.engine.constraint import Constraint
from rung.engine.sampling import Sampling
from rung.errors import RungError


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
class Order:
    """One request. prompt: int32 [n].

    best_of: samples made, of which the num_samples with the highest mean log-probability are given
    back at the end; 0: as many as are given back. top_logprobs: log-probabilities of the tokens and
    of so many of the likeliest, None: without. echo: the prompt comes first, as if it were said.
    """

    prompt: np.ndarray
    sampling: Sampling
    num_samples: int = 1
    best_of: int = 0
    top_logprobs: int | None = None
    echo: bool = False
    constraint: Constraint | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """raw: the token's bytes, perhaps half a character. logprob: None for the first of a prompt.
    top: (id, log-probability) of the likeliest, likeliest first."""

    id: int
    raw: bytes
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """What a client gets next of a sample.

    text: whole characters, none that may begin a stop text. tokens: those whose text is complete
    with it, where log-probabilities were asked for. ids: all new tokens since the last piece, also
    those without a text yet or any more. finish: on the last piece of the sample; stop: the stop
    text that ended it, if one did.
    """

    sample: int
    text: str
    tokens: tuple[TokenLogprob, ...]
    ids: tuple[int, ...]
    finish: Literal["stop", "length"] | None
    stop: str | None = None


@dataclass(frozen=True)
class Failure:
    """The request as a whole failed after it was accepted."""

    error: RungError


@dataclass(frozen=True)
class ServedModel:
    """created: Unix time. kind: model, adapter, or another kind of artefact."""

    name: str
    artefact_id: str
    context: int
    created: int
    kind: str


@dataclass(frozen=True)
class ServiceOptions:
    """max_rows: samples at work at once. max_queue: samples that may wait. kv_gb: memory for what
    samples have read, None: a quarter of what is free. cached_tokens: prompt tokens kept for
    prompts that begin alike."""

    max_rows: int = 32
    max_queue: int = 256
    kv_gb: float | None = None
    cached_tokens: int = 8192
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    device: str = "auto"


@dataclass(frozen=True)
class ServiceStats:
    """Samples at work and waiting, slots, tokens held and their limit, and totals since start."""

    running: int = 0
    waiting: int = 0
    slots: int = 0
    slots_used: int = 0
    kv_tokens: int = 0
    kv_tokens_used: int = 0
    prompt_tokens_total: int = 0
    new_tokens_total: int = 0
    prefix_hits_total: int = 0
