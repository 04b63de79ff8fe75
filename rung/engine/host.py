"""A model in memory and the jobs it works on. Lives on the engine's thread.

A job is one order on its way: its samples, the text of each, and whom to tell.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rung.engine.engine import Engine
from rung.engine.generate import Ready
from rung.engine.orders import Failure, Order, Piece, ServiceOptions, TokenLogprob
from rung.engine.request import Request, Sample
from rung.engine.textstream import Text, TextStream
from rung.errors import RungError
from rung.model.adapters import attach_adapter, detach_adapter, saved_bits
from rung.model.load import context_length, load_model
from rung.model.memory import available_memory
from rung.model.precision import pick_device, pick_dtype
from rung.tokens.token_bytes import vocabulary_bytes
from rung.tokens.tokenizer import Tokenizer

Deliver = Callable[[Piece | Failure], None]
SHARE = 0.25  # of the free memory, for what samples have read, where nothing else is said
EMBED_TOKENS = 4096  # padded tokens in one call


class Host:
    """One model, perhaps with several adapters over it, and its engine."""

    def __init__(self, folder: Path, options: ServiceOptions) -> None:
        self.folder = folder
        device = pick_device(options.device)
        self.dtype = pick_dtype(options.precision, device)
        self.model = load_model(folder, device=device)
        self._ready: Ready | None = None
        self._stay = ExitStack()  # holds `_ready` while it is entered
        self._awake = False
        self.context = context_length(self.model)
        most = _kv_tokens(self.model, options, rows=options.max_rows * self.context)
        self.engine = Engine(
            self.model,
            max_rows=options.max_rows,
            max_tokens=most,
            cached_tokens=min(options.cached_tokens, most // 2),
            in_parts=True,
        )
        self.kv_tokens = most
        self._jobs: dict[int, Job] = {}  # by id of a sample
        self._silent: list[Sample] = []  # samples that will make no token

    def attach(self, folder: Path) -> str:
        """Put an adapter beside those that are there; its name in the model."""
        name = folder.name
        if name not in getattr(self.model, "peft_config", {}):
            self.rest()
            self._ready = None
            try:
                bits = saved_bits(folder)
                attach_adapter(self.model, folder, name=name, dtype=self.dtype, bits=bits)
            except BaseException:
                self.detach(name)  # half of it would be taken for the whole the next time
                raise
        return name

    def detach(self, name: str) -> None:
        """Let an adapter go that nobody speaks with any more."""
        self.rest()
        detach_adapter(self.model, name)

    def speaks_with(self, adapter: str | None) -> bool:
        """Whether a job at work uses this adapter."""
        return any(job.request.adapter == adapter for job in self._jobs.values())

    def wake(self) -> None:
        """Be ready for calls of the model, until `rest`: getting ready takes as long as a step of a
        small model. One host of a thread at a time, since part of it is the thread's state."""
        if self._ready is None:
            self._ready = Ready(self.model, self.dtype)
        if not self._awake:
            self._stay.enter_context(self._ready)
            self._awake = True

    def rest(self) -> None:
        self._stay.close()
        self._awake = False

    @property
    def busy(self) -> bool:
        return self.engine.busy

    def start(self, job: "Job") -> None:
        """Begin with a job; what is wrong with it is told to its client."""
        try:
            job.samples = self.engine.submit(job.request)
        except RungError as error:
            job.deliver(Failure(error))
            return
        for sample in job.samples:
            self._jobs[id(sample)] = job
        self._silent += [sample for sample in job.samples if sample.limit == 0]

    def cancel(self, job: "Job") -> None:
        self._end(job.samples, "cancelled")

    def step(self) -> int:
        """One step of the engine; how many samples ended."""
        try:
            self.wake()
            made = self.engine.step()
        except RungError as error:
            return self.fail(error)
        over: list[Sample] = []
        for sample, token in made:
            job = self._jobs.get(id(sample))
            if job is not None and sample.error is not None:
                job.deliver(Failure(sample.error))
                over += job.samples
            elif job is not None and job.take(sample, token):
                over.append(sample)
        for sample in [s for s in self._silent if s.finish is not None]:
            self._silent.remove(sample)
            job = self._jobs.get(id(sample))
            if job is not None:
                job.end(sample)
                over.append(sample)
        if over:
            self._end(over, "stop")
        return len(over)

    def fail(self, error: RungError) -> int:
        """Nothing that runs here can go on; the next requests start anew."""
        jobs = {id(job): job for job in self._jobs.values()}
        samples = [sample for job in jobs.values() for sample in job.samples]
        self._end(samples, "cancelled")
        self.engine.forget()
        for job in jobs.values():
            job.deliver(Failure(error))
        return len(samples)

    def _end(self, samples: Sequence[Sample], reason: str) -> None:
        self.engine.finish(samples, reason)
        for sample in samples:
            self._jobs.pop(id(sample), None)
        gone = {id(sample) for sample in samples}
        self._silent = [sample for sample in self._silent if id(sample) not in gone]

    def embed(self, prompts: Sequence[np.ndarray], voice: str | None) -> np.ndarray:
        """Mean of the last hidden states of each prompt, of length 1: float32 [n, W]."""
        self.wake()
        found = np.zeros((len(prompts), self.model.config.hidden_size), dtype=np.float32)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        while order:
            fits = max(1, EMBED_TOKENS // len(prompts[order[-1]]))
            rows, order = order[-fits:], order[:-fits]
            found[rows] = self.engine.read_only([prompts[i] for i in rows], adapter=voice)
        norms = np.linalg.norm(found, axis=1, keepdims=True)
        return found / np.maximum(norms, 1e-12)


class Job:
    """An order on its way."""

    def __init__(
        self, order: Order, tokenizer: Tokenizer, deliver: Deliver, *, voice: str | None
    ) -> None:
        self.order = order
        self.deliver = deliver
        self.samples: list[Sample] = []
        self._tokenizer = tokenizer
        self._spelling = vocabulary_bytes(tokenizer)
        num_samples = max(order.num_samples, order.best_of)
        self._choosing = order.best_of > order.num_samples
        num_logps = order.top_logprobs
        self.request = Request(
            order.prompt,
            order.sampling,
            num_samples=num_samples,
            num_logps=0 if num_logps is None and self._choosing else num_logps,
            echo=order.echo and num_logps is not None,
            adapter=voice,
            constraint=order.constraint,
        )
        self._texts: list[TextStream[int]] = [
            TextStream(tokenizer.decode, order.sampling.stop) for _ in range(num_samples)
        ]
        self._told = [0] * num_samples  # new tokens that the client knows of
        self._opened = [False] * num_samples
        self._kept: list[list[Piece]] = [[] for _ in range(num_samples)]
        self._left = num_samples

    def take(self, sample: Sample, token: int) -> bool:
        """A new token; whether the sample is over, by itself or by a stop text."""
        text = self._texts[sample.index]
        if sample.finish == "stop" and token in sample.request.sampling.stop_ids:
            return self.end(sample, last=len(sample.ids) - 1)
        shown = text.push(token, len(sample.ids) - 1)
        if shown.stop is not None:
            self._tell(sample, shown, "stop")
            return True
        if sample.finish is not None:
            return self.end(sample, shown)
        if shown.text or not self._opened[sample.index]:
            self._tell(sample, shown, None)
        return False

    def end(
        self, sample: Sample, before: Text[int] | None = None, *, last: int | None = None
    ) -> bool:
        """The last piece: what was held back, and why it ended. last: a stop token's place, which
        has a log-probability and no text."""
        rest = self._texts[sample.index].finish()
        if before is not None:
            rest = Text(before.text + rest.text, before.notes + rest.notes, rest.stop)
        if last is not None and rest.stop is None:
            rest = rest._replace(notes=[*rest.notes, last])
        self._tell(
            sample, rest, "length" if sample.finish == "length" and not rest.stop else "stop"
        )
        return True

    def _tell(self, sample: Sample, shown: Text[int], finish: Any) -> None:
        index, tokens, text = sample.index, [], shown.text
        if not self._opened[index]:
            self._opened[index] = True
            if self.order.echo:
                text = self._tokenizer.decode(self.order.prompt) + text
                tokens += self._prompt_tokens(sample)
        if self.order.top_logprobs is not None:
            tokens += [self._spell(sample.ids[at], *sample.logps[at]) for at in shown.notes]
        fresh, self._told[index] = tuple(sample.ids[self._told[index] :]), len(sample.ids)
        piece = Piece(index, text, tuple(tokens), fresh, finish, shown.stop)
        if not self._choosing:
            self.deliver(piece)
            return
        self._kept[index].append(piece)
        self._left -= finish is not None
        if not self._left:
            self._give_the_best()

    def _give_the_best(self) -> None:
        """best_of: those with the highest mean log-probability, likeliest first."""

        def merit(sample: Sample) -> float:
            return float(np.mean([part[0] for part in sample.logps] or [0.0]))

        best = sorted(self.samples, key=merit, reverse=True)[: self.order.num_samples]
        for number, sample in enumerate(best):
            for piece in self._kept[sample.index]:
                self.deliver(replace(piece, sample=number))

    def _prompt_tokens(self, sample: Sample) -> list[TokenLogprob]:
        logps = sample.prompt_logps
        if logps is None:
            return []
        parts = zip(logps.chosen.tolist(), logps.top_ids, logps.top, strict=True)
        prompt = self.order.prompt.tolist()
        return [self._spell(token, *part) for token, part in zip(prompt, parts, strict=True)]

    def _spell(self, token: int, logp: float, ids: np.ndarray, top: np.ndarray) -> TokenLogprob:
        """A token as the client sees it; special ones add nothing to the text."""
        is_text = token not in self._tokenizer.special_ids and token < len(self._spelling)
        raw = self._spelling[token] if is_text else b""
        if math.isnan(logp):
            return TokenLogprob(token, raw, None)
        return TokenLogprob(token, raw, logp, tuple(zip(ids.tolist(), top.tolist(), strict=True)))


def _kv_tokens(model: Any, options: ServiceOptions, *, rows: int) -> int:
    """Tokens that there is memory for, at most as many as the slots can hold."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    each = config.num_hidden_layers * heads * width * 2 * 4
    memory = options.kv_gb * 1e9 if options.kv_gb else SHARE * (available_memory() or 4e9)
    return min(rows, max(256, int(memory // each)))
