"""The engine: many samples at work at once, each joining and leaving when it is its turn.

A prompt is read once for all its samples. Rows that finish leave, and queued samples take their
slots: the batch stays full to the end. One step feeds the last token of every row; the last token
of a prompt is fed that way too, so reading a prompt needs no logits.

Long prompts are read in parts, one part a step, so that the samples at work go on meanwhile. Such a
prompt is read into a slot of its own and copied to its samples when it is done.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from rung.engine.choose import choose, token_logps
from rung.engine.counter import MASK, uniform
from rung.engine.prefix import PrefixCache
from rung.engine.request import Request, Sample, check_prompt
from rung.engine.reshape import reshape
from rung.engine.sampling import TokenLogps
from rung.engine.scoring import score, whole_prompt
from rung.engine.slots import BLOCK, Blocks, Slots
from rung.errors import DataError, RungError
from rung.model.adapters import route
from rung.model.load import context_length
from rung.model.types import PreTrainedModel

MAX_ROWS = 128
"""Slots by default: with fewer a step is mostly dispatch, with more its keys leave the caches.
64, 128 and 256 made 3,300, 5,000 and 5,400 tokens/s with 1.4 M parameters on 2 cores."""
READ_TOKENS = 8192  # padded prompt tokens read in one call, bounds its memory
ALONE = 512  # tokens of a prompt that are read at a time while no sample is at work
PART = 32  # tokens of a prompt that are read at least, beside samples at work
PATIENCE = 1.0  # steps that reading a part may take while samples wait for their next token


class Made(NamedTuple):
    """One new token of a sample; the sample's `finish` says whether it was the last."""

    sample: Sample
    token: int


@dataclass(eq=False)
class _Prompt:
    """A prompt to read for `samples`; `done` of its tokens are read. known: where the blocks are
    that it begins with."""

    request: Request
    samples: list[Sample]
    known: list[int] = field(default_factory=list)
    done: int = 0
    logps: list[TokenLogps] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens to read: all but the last, which is fed in a step."""
        return len(self.request.prompt) - 1

    @property
    def left(self) -> int:
        return self.length - self.done


class Engine:
    """Samples at work. Call `step` while `busy`, inside `Ready` (generate.py).

    max_rows: samples at work at once. max_length: longest sequence, the model's context when None.
    max_tokens: tokens that the samples at work may come to, all together; None: no limit.
    cached_tokens: tokens of prompts to keep for prompts that begin alike. in_parts: whether long
    prompts are read beside samples at work; then what a step reads depends on how fast it was.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        max_rows: int = MAX_ROWS,
        max_length: int | None = None,
        max_tokens: int | None = None,
        cached_tokens: int = 0,
        in_parts: bool = False,
    ) -> None:
        assert max_rows >= 1
        self._model: Any = model
        self.context = min(context_length(model), max_length or context_length(model))
        self.max_rows = max_rows
        self.max_tokens = max_tokens
        self._slots, self._stage, self._blocks = Slots(most_rows=max_rows), Slots(), Blocks()
        self.prefixes = PrefixCache(cached_tokens // BLOCK)
        self._in_parts = in_parts
        self._queue: deque[Sample] = deque()
        self._staged: _Prompt | None = None
        # by row in use: its sample, the token to feed, its position
        self._samples: list[Sample] = []
        self._token = np.zeros(max_rows, dtype=np.int64)
        self._position = np.zeros(max_rows, dtype=np.int64)
        self._pace = _Pace()
        self.prompt_tokens = 0
        self.new_tokens = 0

    @property
    def busy(self) -> bool:
        return bool(self._samples or self._queue or self._staged)

    @property
    def waiting(self) -> int:
        """Samples without a slot."""
        return len(self._queue) + (len(self._staged.samples) if self._staged else 0)

    @property
    def running(self) -> int:
        return len(self._samples)

    @property
    def tokens_held(self) -> int:
        """Tokens that the samples at work may come to."""
        staged = self._staged.samples if self._staged else []
        return sum(sample.length for sample in (*self._samples, *staged))

    def submit(self, request: Request) -> list[Sample]:
        """Queue the samples of a request. DataError: a prompt that is empty, or too long."""
        # a prompt that fills the context can be scored: then nothing is added to it
        check_prompt(request.prompt, self.context + int(request.echo))
        room = self.context - len(request.prompt)
        limit = min(request.sampling.max_new_tokens, room)
        most = self.max_tokens
        if most is not None and len(request.prompt) + limit > most:
            raise DataError(
                f"{len(request.prompt)} tokens of the prompt and up to {limit} new ones are more"
                f" than the {most} that there is memory for: ask for fewer new tokens"
            )
        samples = [
            Sample(request, index, limit, _clone(request)) for index in range(request.num_samples)
        ]
        self._queue.extend(samples)
        return samples

    def cancel(self, sample: Sample) -> None:
        """End a sample; its slot is free before the next step."""
        self.finish([sample], "cancelled")

    @torch.inference_mode()  # also called between steps, and slots made in it change only in it
    def finish(self, samples: Sequence[Sample], reason: Any) -> None:
        """End samples wherever they are; those that ended already stay as they were."""
        going = {id(sample) for sample in samples if sample.finish is None}
        for sample in samples:
            sample.finish = sample.finish or reason
        self._queue = deque(s for s in self._queue if id(s) not in going)
        if self._staged is not None:
            self._staged.samples = [s for s in self._staged.samples if id(s) not in going]
            if not self._staged.samples:
                self._staged = None
        self._leave([row for row, s in enumerate(self._samples) if id(s) in going])

    def forget(self) -> None:
        """The weights have changed: what was read with the old ones is of no use to new prompts."""
        self.prefixes.clear()

    def read_only(self, prompts: Sequence[np.ndarray], *, adapter: str | None) -> np.ndarray:
        """Mean of the last hidden states of each prompt, float32 [n, W]; no slot is touched."""
        width, device = max(len(prompt) for prompt in prompts), self._model.device
        ids = np.zeros((len(prompts), width), dtype=np.int64)
        inside = np.zeros((len(prompts), width, 1), dtype=np.float32)  # 1 = a token of the prompt
        for row, prompt in enumerate(prompts):
            check_prompt(prompt, self.context + 1)
            ids[row, : len(prompt)], inside[row, : len(prompt)] = prompt, 1
        route(self._model, [adapter] * len(prompts))
        hidden = self._model.base_model(
            input_ids=torch.from_numpy(ids).to(device),
            position_ids=torch.arange(width, device=device)[None].expand(len(prompts), -1),
            use_cache=False,
        ).last_hidden_state
        weights = torch.from_numpy(inside).to(device)
        means = (hidden.float() * weights).sum(1) / weights.sum(1)
        return means.cpu().numpy()

    def step(self) -> list[Made]:
        """One token more for every row, and prompts read for the next: what was made, by row.

        A sample that makes no tokens (max_new_tokens 0) ends without appearing here.
        """
        made = self._advance() if self._samples else []
        self._read_prompts()
        return made

    # ---- prompts

    def _read_prompts(self) -> None:
        """Give free slots to queued samples, as far as the time of a step allows."""
        budget = READ_TOKENS
        if self._in_parts:
            budget = self._pace.part(ALONE) if self._samples else ALONE
        if self._staged is not None:
            budget -= self._read_part(self._staged, budget)
        free = self.max_rows - len(self._samples)
        # Reading a prompt costs a call: of a long queue, wait until a few can be read together.
        few = max(1, min(len(self._queue), self.max_rows // 8))
        if not self._queue or (self._samples and free < few):
            return
        batch: list[_Prompt] = []
        for prompt in self._next_prompts(free):
            prompt.known = self._look_up(prompt)
            prompt.done = BLOCK * len(prompt.known)
            if not self._in_parts or prompt.left <= budget:
                batch.append(prompt)
                budget -= prompt.left
            elif self._staged is None:
                self._staged = prompt  # its first part is read in the next step
                self._stage.fit(rows=1, length=prompt.length)
                self._load(prompt, self._stage, [0])
            else:
                self._queue.extendleft(reversed(prompt.samples))
                break
        self._read_whole(batch)

    def _next_prompts(self, free: int) -> Iterator[_Prompt]:
        """Queued samples that fit, a prompt at a time, with as many of its samples as fit."""
        staged = len(self._staged.samples) if self._staged else 0
        free -= staged
        held = self.tokens_held
        while self._queue and free > 0:
            request = self._queue[0].request
            taken: list[Sample] = []
            while self._queue and len(taken) < free and self._queue[0].request is request:
                if self.max_tokens is not None and held + self._queue[0].length > self.max_tokens:
                    break
                held += self._queue[0].length
                taken.append(self._queue.popleft())
            if not taken:
                return
            free -= len(taken)
            yield _Prompt(request, taken)

    def _look_up(self, prompt: _Prompt) -> list[int]:
        """Where the blocks are that need no reading, since another prompt began with them."""
        if prompt.request.echo or not self.prefixes.num_blocks:
            return []
        return self.prefixes.match(prompt.request.prompt[:-1], voice=prompt.request.adapter)

    def _load(self, prompt: _Prompt, into: Slots, slots: list[int]) -> None:
        """Put what is known of a prompt into its slots."""
        if prompt.known:
            for slot in slots:
                self._blocks.load(prompt.known, into, slot)
            self.prefixes.hits += prompt.done

    def _read_part(self, prompt: _Prompt, budget: int) -> int:
        """Read at most `budget` tokens of the staged prompt; how many it were."""
        count = min(prompt.left, max(budget, PART))
        if count:
            self._call([prompt], self._stage, [[0]], counts=[count])
        if not prompt.left:
            self._staged = None
            (rows,) = self._enter([prompt])
            self._slots.copy([0] * len(rows), rows, length=prompt.length, of=self._stage)
            self._keep([prompt], [rows])
        return count

    def _read_whole(self, prompts: list[_Prompt]) -> None:
        """Prompts in as few calls as their lengths allow, straight into the slots of their rows."""
        rows = self._enter(prompts)
        for prompt, slots in zip(prompts, rows, strict=True):
            self._load(prompt, self._slots, slots)
        waiting = [i for i, prompt in enumerate(prompts) if prompt.left]
        waiting.sort(key=lambda i: (bool(prompts[i].done), prompts[i].left, i))
        while waiting:
            last = prompts[waiting[-1]]
            fits = max(1, READ_TOKENS // last.left)
            # Rows under half the longest would be mostly padding: they go in a later call. So do
            # those that begin their prompt, which need no keys but their own.
            batch = [
                i
                for i in waiting[-fits:]
                if 2 * prompts[i].left >= last.left and bool(prompts[i].done) == bool(last.done)
            ]
            waiting = [i for i in waiting if i not in batch]
            chosen = [prompts[i] for i in batch]
            counts = [prompt.left for prompt in chosen]
            self._call(chosen, self._slots, [rows[i] for i in batch], counts=counts)
        self._keep(prompts, rows)

    def _enter(self, prompts: Sequence[_Prompt]) -> list[list[int]]:
        """Rows for the samples of each prompt, at the end of those in use, and room for them."""
        found = []
        for prompt in prompts:
            first = len(self._samples)
            self._samples.extend(prompt.samples)
            rows = list(range(first, len(self._samples)))
            self._token[rows] = prompt.request.prompt[-1]
            self._position[rows] = prompt.length
            found.append(rows)
        if prompts:
            longest = max(sample.length for prompt in prompts for sample in prompt.samples)
            self._slots.fit(rows=len(self._samples), length=longest)
        return found

    def _keep(self, prompts: list[_Prompt], rows: list[list[int]]) -> None:
        """Prompts were read: keep their blocks, and end the samples that make no tokens."""
        for prompt, slots in zip(prompts, rows, strict=True):
            self._remember(prompt.request, prompt.request.prompt[:-1], slots[0])
            if prompt.request.echo:
                logps = whole_prompt(prompt.logps, num_top=prompt.request.num_logps or 0)
                for sample in prompt.samples:
                    sample.prompt_logps = logps
        silent = [s for prompt in prompts for s in prompt.samples if s.limit == 0]
        if silent:
            self.finish(silent, "length")

    def _remember(self, request: Request, tokens: np.ndarray, slot: int) -> None:
        if self.prefixes.num_blocks:
            fresh = self.prefixes.insert(tokens, voice=request.adapter)
            self._blocks.save(self._slots, slot, fresh)

    def _call(
        self, prompts: list[_Prompt], into: Slots, slots: list[list[int]], *, counts: list[int]
    ) -> None:
        """Read `counts` more tokens of each prompt, right-padded, in one call of the model."""
        began = time.perf_counter()
        width, device = max(counts), self._model.device
        starts = [prompt.done for prompt in prompts]
        ids = np.zeros((len(prompts), width), dtype=np.int64)
        for row, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
            ids[row, :count] = prompt.request.prompt[prompt.done : prompt.done + count]
            prompt.done += count
        into.begin_read(
            [row for row, several in enumerate(slots) for _ in several],
            [slot for several in slots for slot in several],
            starts,
            ends=[prompt.done for prompt in prompts],
        )
        self._speak([prompt.request for prompt in prompts])
        at = np.minimum(np.array(starts)[:, None] + np.arange(width), self.context - 1)
        hidden = self._model.base_model(
            input_ids=torch.from_numpy(ids).to(device),
            position_ids=torch.from_numpy(at).to(device),
            past_key_values=into,
            use_cache=True,
            slots=into,
        ).last_hidden_state
        for row, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
            if prompt.request.echo:
                after = prompt.request.prompt[starts[row] + 1 : starts[row] + 1 + count]
                num_top = prompt.request.num_logps or 0
                prompt.logps += score(self._model, hidden[row, :count], after, num_top=num_top)
        self.prompt_tokens += sum(counts)
        self._pace.read(len(prompts) * width, time.perf_counter() - began)

    # ---- steps

    def _advance(self) -> list[Made]:
        """Feed the token of every row and choose the next one."""
        began, rows = time.perf_counter(), slice(0, len(self._samples))
        chosen = self._next_tokens()
        made = [Made(s, t) for s, t in zip(self._samples, chosen.tolist(), strict=True)]
        finished = []
        for row, (sample, token) in enumerate(made):
            sample.ids.append(token)
            _accept(sample, token)
            sample.finish = _reason(sample)
            if sample.finish:
                finished.append(row)
        self._token[rows] = chosen
        self._position[rows] += 1
        self.new_tokens += len(made)
        self._leave(finished)
        self._pace.step(time.perf_counter() - began)
        return made

    def _next_tokens(self) -> np.ndarray:
        """The tokens that follow the last ones of all rows, int64 [rows]."""
        device, rows = self._model.device, slice(0, len(self._samples))
        positions = torch.from_numpy(self._position[rows].copy()).to(device)
        self._slots.begin_step(positions, longest=int(self._position[rows].max()))
        self._speak([sample.request for sample in self._samples])
        logits = self._model(
            input_ids=torch.from_numpy(self._token[rows].copy()).to(device)[:, None],
            position_ids=positions[:, None],
            past_key_values=self._slots,
            use_cache=True,
            slots=self._slots,
        ).logits[:, -1]
        samplings = [sample.request.sampling for sample in self._samples]
        numbers = uniform(
            seed=np.array([sampling.seed & MASK for sampling in samplings], np.uint64),
            keys=np.array([sample.request.key for sample in self._samples]),
            samples=np.array([sample.index for sample in self._samples]),
            tokens=np.array([len(sample.ids) for sample in self._samples]),
        )
        shaped = reshape(logits, self._samples)
        chosen = choose(shaped, torch.from_numpy(numbers).to(device), samplings)
        self._note_logps(logits, chosen)
        return chosen.cpu().numpy()

    def _note_logps(self, logits: torch.Tensor, chosen: torch.Tensor) -> None:
        """Log-probabilities of the new tokens, for the samples that asked for them."""
        wanted = [r for r, s in enumerate(self._samples) if s.request.num_logps is not None]
        if not wanted:
            return
        most = max(self._samples[row].request.num_logps or 0 for row in wanted)
        own, ids, top = token_logps(logits[wanted], chosen[wanted], num_top=most)
        for at, row in enumerate(wanted):
            count = self._samples[row].request.num_logps or 0
            self._samples[row].logps.append((float(own[at]), ids[at, :count], top[at, :count]))

    def _speak(self, requests: Sequence[Request]) -> None:
        """Tell the model's adapters which rows of the next call are theirs."""
        route(self._model, [request.adapter for request in requests])

    def _leave(self, finished: list[int]) -> None:
        """Free the rows `finished`; rows from the end move into the gaps."""
        if not finished:
            return
        for row in finished:
            sample = self._samples[row]
            if sample.ids and sample.finish != "cancelled":
                said = np.array(sample.ids[:-1], dtype=np.int64)
                whole = np.concatenate([sample.request.prompt.astype(np.int64), said])
                self._remember(sample.request, whole, row)
        kept = len(self._samples) - len(finished)
        gaps = [row for row in finished if row < kept]
        gone = set(finished)
        movers = [row for row in range(kept, len(self._samples)) if row not in gone]
        if gaps:
            self._slots.copy(movers, gaps, length=int(self._position[movers].max()))
            for state in (self._token, self._position):
                state[gaps] = state[movers]
            for gap, mover in zip(gaps, movers, strict=True):
                self._samples[gap] = self._samples[mover]
        del self._samples[kept:]


class _Pace:
    """How long steps take and prompts, to read as much beside samples as they hardly notice.

    A call takes some time however little it reads, about that of a step of one row: without knowing
    that, parts would be small because small parts are slow.
    """

    def __init__(self) -> None:
        self._step = 0.0  # seconds
        self._least = 0.0  # seconds of the shortest step of late
        self._token = 0.0  # seconds a token of a prompt, beyond those of any call

    def step(self, seconds: float) -> None:
        self._step = seconds if not self._step else 0.8 * self._step + 0.2 * seconds
        self._least = min(seconds, 1.01 * self._least or seconds)

    def read(self, tokens: int, seconds: float) -> None:
        each = max(seconds - self._least, 0.1 * seconds) / tokens
        self._token = each if not self._token else 0.8 * self._token + 0.2 * each

    def part(self, most: int) -> int:
        """Tokens that are read in PATIENCE steps."""
        if not self._token or not self._step:
            return PART
        room = PATIENCE * self._step - self._least
        return min(most, max(PART, int(room / self._token)))


def _clone(request: Request) -> Any:
    return None if request.constraint is None else request.constraint.clone()


def _accept(sample: Sample, token: int) -> None:
    """Tell the sample's constraint what was chosen."""
    if sample.constraint is None or sample.error or token in sample.request.sampling.stop_ids:
        return
    try:
        sample.constraint.accept(token)
    except RungError as error:
        sample.error = error


def _reason(sample: Sample) -> Any:
    """Why a sample ends with its last token, None where it goes on."""
    if sample.error is not None:
        return "cancelled"
    if sample.ids[-1] in sample.request.sampling.stop_ids:
        return "stop"
    if sample.constraint is not None and sample.constraint.done:
        return "stop"
    return "length" if len(sample.ids) >= sample.limit else None
