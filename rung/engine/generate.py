"""Generation: prompts in, samples out, with as many rows at work as there are slots.

A prompt is read once for all its samples. Rows that finish leave, and queued prompts take their
slots: the batch stays full to the end. One step feeds the last token of every row; the last token
of a prompt is fed that way too, so reading a prompt needs no logits.
"""

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from rung.engine.choose import choose
from rung.engine.counter import uniform
from rung.engine.sampling import Completion, Sampling
from rung.engine.slots import BLOCK, Slots, slot_attention
from rung.errors import DataError
from rung.model.load import context_length
from rung.model.precision import autocast
from rung.model.types import PreTrainedModel

MAX_ROWS = 128
"""Slots by default: with fewer a step is mostly dispatch, with more its keys leave the caches.
64, 128 and 256 made 3,300, 5,000 and 5,400 tokens/s with 1.4 M parameters on 2 cores."""
PROMPT_TOKENS = 8192  # padded prompt tokens read in one call, bounds its memory


def generate(
    model: PreTrainedModel,
    prompts: Sequence[np.ndarray],
    sampling: Sampling,
    *,
    num_samples: int = 1,
    keys: Sequence[int] | None = None,
    on_token: Callable[[int, int], None] | None = None,
    max_rows: int = MAX_ROWS,
    dtype: torch.dtype = torch.float32,
) -> list[list[Completion]]:
    """`num_samples` completions of every prompt, in the order of the prompts.

    keys: what names a prompt to the random numbers; its index when None. on_token(row, id) is
    called for every new token, row = prompt index x num_samples + sample index. dtype: of the
    matrix products. A sample ends at a stop id, after max_new_tokens, or (stopped = False) where
    the model's context ends. DataError: a prompt that is empty or fills the context.
    """
    engine = Engine(model, prompts, sampling, num_samples=num_samples, keys=keys, max_rows=max_rows)
    with ready(model, dtype):
        while engine.busy:
            for row, token in engine.step():
                if on_token is not None:
                    on_token(row, token)
    return engine.completions()


def stream(
    model: PreTrainedModel,
    prompt: np.ndarray,
    sampling: Sampling,
    *,
    key: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Iterator[int]:
    """New token ids of one sample as they are made, the stop token included: as `generate`."""
    engine = Engine(model, [prompt], sampling, num_samples=1, keys=[key], max_rows=1)
    while engine.busy:
        with ready(model, dtype):  # not across a yield: the caller's torch state is its own
            made = engine.step()
        for _, token in made:
            yield token


@contextmanager
def ready(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[None]:
    """The model in evaluation mode, over slots, without gradients and without recompilation."""
    was_training = model.training
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(autocast(dtype, model.device))
        stack.enter_context(slot_attention(model))
        if "torch._dynamo" in sys.modules:
            # layers compiled for training would recompile for every shape of a decode
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        model.eval()
        try:
            yield
        finally:
            model.train(was_training)


class Engine:
    """Samples at work. Call `step` while `busy`, inside `ready`."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[np.ndarray],
        sampling: Sampling,
        *,
        num_samples: int = 1,
        keys: Sequence[int] | None = None,
        max_rows: int = MAX_ROWS,
    ) -> None:
        assert num_samples >= 1
        assert max_rows >= 1
        assert keys is None or len(keys) == len(prompts)
        context = context_length(model)
        _check_prompts(prompts, context)
        self._model: Any = model
        self._sampling = sampling
        self._stop = frozenset(sampling.stop_ids)
        self._num_samples = num_samples
        self._prompts = [np.asarray(prompt, dtype=np.int64) for prompt in prompts]
        self._keys = np.asarray(range(len(prompts)) if keys is None else keys, dtype=np.int64)
        room = min(max_rows, len(prompts) * num_samples)
        lengths = [min(context, len(p) + sampling.max_new_tokens) for p in prompts]
        length = -(-max(lengths, default=1) // BLOCK) * BLOCK
        self._slots = Slots(rows=room, length=length)
        # by sample: its limit, its tokens, whether it stopped
        self._limits = [n - len(p) for n, p in zip(lengths, prompts, strict=True)]
        self._made: list[list[int]] = [[] for _ in range(len(prompts) * num_samples)]
        self._stopped = [False] * len(self._made)
        # Longest prompts first: a step reads as many keys of every row as the longest row has.
        by_length = sorted(range(len(self._made)), key=lambda s: -lengths[s // num_samples])
        self._queue = deque(by_length)
        # by row in use: which sample, the token to feed, its position
        self._num_rows = 0
        self._sample = np.zeros(room, dtype=np.int64)
        self._token = np.zeros(room, dtype=np.int64)
        self._position = np.zeros(room, dtype=np.int64)

    @property
    def busy(self) -> bool:
        return bool(self._num_rows or self._queue)

    def step(self) -> list[tuple[int, int]]:
        """Fill free slots, make one token for every row; (sample, token) of each, by sample."""
        free = len(self._sample) - self._num_rows
        # Reading a prompt costs a call: wait until a few can be read together.
        if self._queue and (free >= max(1, len(self._sample) // 8) or not self._num_rows):
            self._admit(min(free, len(self._queue)))
        chosen = self._next_tokens()
        rows = range(self._num_rows)
        samples = self._sample[: self._num_rows].tolist()
        made = list(zip(samples, chosen.tolist(), strict=True))
        finished = []
        for row, (sample, token) in zip(rows, made, strict=True):
            self._made[sample].append(token)
            self._stopped[sample] = token in self._stop
            limit = self._limits[sample // self._num_samples]
            if self._stopped[sample] or len(self._made[sample]) >= limit:
                finished.append(row)
        self._token[: self._num_rows] = chosen
        self._position[: self._num_rows] += 1
        self._leave(finished)
        return sorted(made)

    def completions(self) -> list[list[Completion]]:
        """All samples, by prompt."""
        done = [
            Completion(np.array(ids, dtype=np.int32), stopped)
            for ids, stopped in zip(self._made, self._stopped, strict=True)
        ]
        per = self._num_samples
        return [done[at : at + per] for at in range(0, len(done), per)]

    def _admit(self, count: int) -> None:
        """Give slots to the next `count` samples; each prompt among them is read once."""
        slots_of: dict[int, list[int]] = {}
        for _ in range(count):
            sample, row = self._queue.popleft(), self._num_rows
            prompt = self._prompts[sample // self._num_samples]
            slots_of.setdefault(sample // self._num_samples, []).append(row)
            self._sample[row] = sample
            self._token[row] = prompt[-1]
            self._position[row] = len(prompt) - 1
            self._num_rows += 1
        waiting = [i for i in slots_of if len(self._prompts[i]) > 1]
        waiting.sort(key=lambda i: (len(self._prompts[i]), i))
        while waiting:
            longest = len(self._prompts[waiting[-1]])
            fits = max(1, PROMPT_TOKENS // longest)
            # rows under half the longest would be mostly padding: they go in a later call
            batch = [i for i in waiting[-fits:] if 2 * len(self._prompts[i]) >= longest]
            del waiting[-len(batch) :]
            self._read(batch, slots_of)

    def _read(self, batch: list[int], slots_of: dict[int, list[int]]) -> None:
        """All but the last token of the prompts in `batch`, right-padded, in one call."""
        length = max(len(self._prompts[i]) for i in batch) - 1
        ids = np.zeros((len(batch), length), dtype=np.int64)
        for row, index in enumerate(batch):
            ids[row, : len(self._prompts[index]) - 1] = self._prompts[index][:-1]
        source = [row for row, index in enumerate(batch) for _ in slots_of[index]]
        target = [slot for index in batch for slot in slots_of[index]]
        device = self._model.device
        self._slots.begin_prompts(
            torch.tensor(source, device=device), torch.tensor(target, device=device)
        )
        self._model.base_model(
            input_ids=torch.from_numpy(ids).to(device),
            position_ids=torch.arange(length, device=device)[None].expand(len(batch), -1),
            past_key_values=self._slots,
            use_cache=True,
            slots=self._slots,
        )

    def _next_tokens(self) -> np.ndarray:
        """Feed the token of every row; the tokens that follow, int64 [rows]."""
        device, rows = self._model.device, slice(0, self._num_rows)
        positions = torch.from_numpy(self._position[rows].copy()).to(device)
        self._slots.begin_step(positions, longest=int(self._position[rows].max()))
        logits = self._model(
            input_ids=torch.from_numpy(self._token[rows].copy()).to(device)[:, None],
            position_ids=positions[:, None],
            past_key_values=self._slots,
            use_cache=True,
            slots=self._slots,
        ).logits[:, -1]
        samples = self._sample[rows]
        numbers = uniform(
            seed=self._sampling.seed,
            keys=self._keys[samples // self._num_samples],
            samples=samples % self._num_samples,
            tokens=np.array([len(self._made[s]) for s in samples.tolist()]),
        )
        chosen = choose(logits, torch.from_numpy(numbers).to(device), self._sampling)
        return chosen.cpu().numpy()

    def _leave(self, finished: list[int]) -> None:
        """Free the rows `finished`; rows from the end move into the gaps."""
        kept = self._num_rows - len(finished)
        gaps = [row for row in finished if row < kept]
        gone = set(finished)
        movers = [row for row in range(kept, self._num_rows) if row not in gone]
        if gaps:
            self._slots.move(movers, gaps, length=int(self._position[movers].max()))
            for state in (self._sample, self._token, self._position):
                state[gaps] = state[movers]
        self._num_rows = kept


def _check_prompts(prompts: Sequence[np.ndarray], context: int) -> None:
    for number, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise DataError(f"prompt {number} is empty; begin it with at least one token")
        if len(prompt) >= context:
            raise DataError(
                f"prompt {number} has {len(prompt)} tokens, the model's context is {context} and"
                f" an answer needs at least one: shorten it to {context - 1} tokens"
            )
