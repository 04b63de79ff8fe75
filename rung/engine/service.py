"""Models at work for many clients at once: one thread owns them, any thread may ask.

Requests go in through a queue, pieces of text come out through callbacks. With several models the
thread gives each a step in turn: two threads of matrix products would only be in each other's way.
This module is light; torch comes with the first model.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from rung.engine.orders import (
    ClosingError,
    Failure,
    Order,
    Piece,
    QueueFullError,
    RequestError,
    ServedModel,
    ServiceOptions,
    ServiceStats,
    TokenLogprob,
    UnknownModelError,
)
from rung.errors import TrainingError
from rung.store.adapter import base_id, layers_below
from rung.tokens.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from rung.engine.host import Host, Job

__all__ = [
    "ClosingError",
    "Failure",
    "Order",
    "Piece",
    "QueueFullError",
    "RequestError",
    "ServedModel",
    "Service",
    "ServiceOptions",
    "ServiceStats",
    "Ticket",
    "TokenLogprob",
    "UnknownModelError",
]

T = TypeVar("T")
MEMORY_OF_RATE = 0.9  # weight of the past in the rate at which samples end
LONGEST_WAIT = 60.0  # seconds that a client is told to wait at most


@dataclass(frozen=True)
class _Voice:
    """A served name: the model that speaks, with which adapter, in which tokens."""

    host: "Host"
    adapter: str | None
    tokenizer: Tokenizer
    served: ServedModel


class Ticket:
    """An order that was taken."""

    def __init__(self, service: "Service", host: "Host", job: "Job") -> None:
        self._service, self._host, self._job = service, host, job

    def cancel(self) -> None:
        """Free its slots within one step; nothing more is delivered."""
        self._job.deliver = lambda piece: None
        self._service._post(lambda: self._host.cancel(self._job))


class Service:
    """See `open`. All methods may be called from any thread."""

    def __init__(self, options: ServiceOptions) -> None:
        self._options = options
        self._voices: dict[str, _Voice] = {}
        self._hosts: list[Host] = []
        self._inbox: deque[Callable[[], Any]] = deque()
        self._put_off: list[Callable[[], Any]] = []
        self._wake = threading.Condition()
        self._coming = 0  # samples in the inbox
        self._closing = False
        self._stopped = False
        self._rate = 1.0  # samples that end in a second
        self._ended_at = time.monotonic()
        self._handed_over: Callable[[], None] = lambda: None
        self._gone = [0, 0, 0]  # totals of models that were replaced
        self._thread = threading.Thread(target=self._run, name="rung-engine", daemon=True)

    @classmethod
    def open(cls, models: Mapping[str, Path], *, options: ServiceOptions) -> "Service":
        """Load models, served name -> folder of a model or adapter; adapters of one base share it.

        ArtefactError: a folder that cannot be loaded.
        """
        service = cls(options)
        folders: dict[Path, set[Path]] = {}
        for folder in models.values():
            folders.setdefault(_base(folder), set()).add(folder)
        for base, above in folders.items():
            shared = len(above) > 1
            host = service._load(base if shared else next(iter(above)))
            for name, folder in models.items():
                if folder in above:
                    service._voices[name] = service._voice(host, name, folder)
        service._thread.start()
        return service

    def _load(self, folder: Path) -> "Host":
        from rung.engine.host import Host

        host = Host(folder, self._options)
        self._post(lambda: self._hosts.append(host))
        return host

    def _voice(self, host: "Host", name: str, folder: Path) -> _Voice:
        """What `name` is served by; an adapter joins its base here."""
        is_adapter = base_id(folder) is not None
        joins = is_adapter and host.folder != folder
        manifest = folder / "manifest.json"
        served = ServedModel(
            name=name,
            artefact_id=folder.name,
            context=host.context,
            created=int((manifest if manifest.is_file() else folder).stat().st_mtime),
            kind="adapter" if is_adapter else "model",
        )
        adapter = host.attach(folder) if joins else None
        return _Voice(host, adapter, load_tokenizer(folder), served)

    def models(self) -> list[ServedModel]:
        return [voice.served for voice in self._voices.values()]

    def tokenizer(self, name: str) -> Tokenizer:
        return self._find(name).tokenizer

    def _find(self, name: str) -> _Voice:
        voice = self._voices.get(name)
        if voice is None:
            served = ", ".join(self._voices) or "none"
            raise UnknownModelError(f"no model {name!r} is served here; there is: {served}")
        return voice

    def submit(self, name: str, order: Order, deliver: Callable[[Piece | Failure], None]) -> Ticket:
        """Take an order; returns at once. deliver is called on the engine's thread.

        UnknownModelError, QueueFullError, ClosingError, RequestError (a prompt too long).
        """
        from rung.engine.host import Job

        count = max(order.num_samples, order.best_of)
        with self._wake:  # found and posted in one: what is found cannot retire in between
            voice = self._find(name)
            host = voice.host
            self._check(order, host)
            job = Job(order, voice.tokenizer, deliver, voice=voice.adapter)
            if self._closing:
                raise ClosingError("the server is shutting down and takes no more requests")
            waiting = self._coming + sum(h.engine.waiting for h in self._hosts)
            if waiting + count > self._options.max_queue + self._options.max_rows:
                after = min(LONGEST_WAIT, max(1.0, waiting / max(self._rate, 0.01)))
                raise QueueFullError(
                    f"{waiting} samples wait already, {self._options.max_queue} may;"
                    f" try again in {after:.0f} s",
                    retry_after=after,
                )
            self._coming += count

            def begin() -> None:
                self._coming -= count
                host.start(job)

            self._post(begin)
        return Ticket(self, host, job)

    def after_deliveries(self, call: Callable[[], None]) -> None:
        """Have `call` run on the engine's thread when all that a step made is delivered."""
        self._handed_over = call

    def _check(self, order: Order, host: "Host") -> None:
        length, most = len(order.prompt), min(host.context, host.kv_tokens)
        if length == 0:
            raise RequestError("the prompt is empty", "prompt")
        new = min(order.sampling.max_new_tokens, host.context - length)
        if length > host.context - (not order.echo) or length + new > most:
            raise RequestError(
                f"the prompt has {length} tokens and up to {order.sampling.max_new_tokens} more are"
                f" asked for; this model's context is {host.context} tokens, and there is memory"
                f" for {host.kv_tokens}: shorten it, or ask for less",
                "prompt",
            )

    def embed(self, name: str, prompts: Sequence[np.ndarray]) -> "Future[np.ndarray]":
        """Mean of the last hidden states, of length 1: float32 [n, W]."""
        with self._wake:
            voice = self._find(name)
            for prompt in prompts:
                if not 0 < len(prompt) <= voice.host.context:
                    raise RequestError(
                        f"an input has {len(prompt)} tokens; this model reads 1 to"
                        f" {voice.host.context}",
                        "input",
                    )
            return self._call(lambda: self._alone(voice.host).embed(prompts, voice.adapter))

    def _call(self, work: Callable[[], T]) -> "Future[T]":
        """What `work` gives on the engine's thread, or raises: the caller's to see, not the
        engine's to die of."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)

        self._post(run)
        return future

    def swap(self, name: str, folder: Path) -> None:
        """Serve `name` from another folder: what runs ends on the old weights, what comes next gets
        the new ones. Returns when they are loaded."""
        self._find(name)
        beside = next((h for h in self._hosts if h.folder == _base(folder) != folder), None)
        if beside is None:
            voice = self._voice(self._load(folder), name, folder)
            self._call(lambda: self._take_over(name, voice)).result()
        else:  # joined and taken over in one: nothing that joins can retire in between
            host = beside
            self._call(lambda: self._take_over(name, self._voice(host, name, folder))).result()

    def _take_over(self, name: str, voice: _Voice) -> None:
        with self._wake:
            old, self._voices[name] = self._voices[name], voice
        self._retire(old)

    def _retire(self, old: _Voice) -> None:
        """Let an adapter go that no name speaks with any more, and a model likewise, once the last
        sample of it has ended."""
        host = old.host
        adapters = [voice.adapter for voice in self._voices.values() if voice.host is host]
        if host not in self._hosts:
            return
        if adapters:
            if old.adapter is None or old.adapter in adapters:
                return
            if host.speaks_with(old.adapter):
                self._later(lambda: self._retire(old))
            else:
                host.detach(old.adapter)
            return
        if host.busy:
            self._later(lambda: self._retire(old))
            return
        host.rest()
        self._hosts.remove(host)
        engine = host.engine
        for place, count in enumerate(
            (engine.prompt_tokens, engine.new_tokens, engine.prefixes.hits)
        ):
            self._gone[place] += count

    def stats(self) -> ServiceStats:
        engines = [host.engine for host in list(self._hosts)]
        return ServiceStats(
            running=sum(e.running for e in engines),
            waiting=self._coming + sum(e.waiting for e in engines),
            slots=sum(e.max_rows for e in engines),
            slots_used=sum(e.running for e in engines),
            kv_tokens=sum(e.max_tokens or 0 for e in engines),
            kv_tokens_used=sum(e.tokens_held for e in engines),
            prompt_tokens_total=self._gone[0] + sum(e.prompt_tokens for e in engines),
            new_tokens_total=self._gone[1] + sum(e.new_tokens for e in engines),
            prefix_hits_total=self._gone[2] + sum(e.prefixes.hits for e in engines),
        )

    def close(self, *, drain_seconds: float) -> None:
        """Take nothing new, finish what runs within the time, end the rest, stop."""
        with self._wake:
            self._closing = True
        until = time.monotonic() + drain_seconds
        while time.monotonic() < until and (self._coming or any(h.busy for h in self._hosts)):
            time.sleep(0.02)
        error = ClosingError(f"the server was shut down; this took longer than {drain_seconds} s")
        self._post(lambda: [host.fail(error) for host in self._hosts if host.busy])
        self._post(self._stop)
        self._thread.join(timeout=60)

    def _stop(self) -> None:
        self._stopped = True

    # ---- the engine's thread

    def _post(self, command: Callable[[], Any]) -> None:
        """Have `command` run between two steps."""
        with self._wake:
            self._inbox.append(command)
            self._wake.notify()

    def _later(self, command: Callable[[], Any]) -> None:
        """As `_post`, but after the next step."""
        self._put_off.append(command)

    def _run(self) -> None:
        while not self._stopped:
            with self._wake:
                while not self._inbox and not any(host.busy for host in self._hosts):
                    self._wake.wait()
                commands = list(self._inbox)
                self._inbox.clear()
            for command in commands:
                self._obey(command)
            for host in list(self._hosts):
                if host.busy:
                    self._step(host)
            self._handed_over()
            put_off, self._put_off = self._put_off, []
            for command in put_off:
                self._post(command)
        for host in self._hosts:
            host.rest()

    def _obey(self, command: Callable[[], Any]) -> None:
        try:
            command()
        except Exception as error:  # as in `_step`; what is half done could be in any model
            for host in self._hosts:
                if host.busy:
                    host.fail(_defect(error))

    def _alone(self, host: "Host") -> "Host":
        """The host, when all others rest."""
        for other in self._hosts:
            if other is not host:
                other.rest()
        return host

    def _step(self, host: "Host") -> None:
        try:
            ended = self._alone(host).step()
        except Exception as error:  # a defect of ours must not silence the whole server
            ended = host.fail(_defect(error))
        if ended:
            now = time.monotonic()
            recent = ended / max(now - self._ended_at, 1e-3)
            self._rate = MEMORY_OF_RATE * self._rate + (1 - MEMORY_OF_RATE) * recent
            self._ended_at = now


def _defect(error: Exception) -> TrainingError:
    return TrainingError(f"the engine failed: {type(error).__name__}: {error}")


def _base(folder: Path) -> Path:
    """The model under an adapter, which may be an adapter itself; of a whole model, itself."""
    return layers_below(folder)[:2][-1]
