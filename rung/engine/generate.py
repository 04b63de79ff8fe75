"""Generation in process: prompts in, samples out, by one engine for all of them."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import numpy as np
import torch

from rung.engine.engine import MAX_ROWS, Engine
from rung.engine.fused import FusedParts
from rung.engine.layers import FusedLayers
from rung.engine.packed import PackedLinears
from rung.engine.request import Request, check_prompt
from rung.engine.sampling import Completion, Sampling
from rung.engine.slots import slot_attention
from rung.model.load import context_length
from rung.model.precision import autocast
from rung.model.types import PreTrainedModel


def generate(
    model: PreTrainedModel,
    prompts: Sequence[np.ndarray],
    sampling: Sampling,
    *,
    num_samples: int = 1,
    keys: Sequence[int] | None = None,
    on_token: Callable[[int, int], None] | None = None,
    max_rows: int = MAX_ROWS,
    num_logps: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[list[Completion]]:
    """`num_samples` completions of every prompt, in the order of the prompts.

    keys: what names a prompt to the random numbers; its index when None. on_token(row, id) is
    called for every new token, row = prompt index x num_samples + sample index. num_logps: with
    log-probabilities, and so many of the likeliest tokens. dtype: of the matrix products. A sample
    ends at a stop id, after max_new_tokens, or (stopped = False) where the model's context ends.
    DataError: a prompt that is empty or fills the context.
    """
    for number, prompt in enumerate(prompts):
        check_prompt(prompt, context_length(model), name=f"prompt {number}")
    names = range(len(prompts)) if keys is None else keys
    requests = [
        Request(np.asarray(p), sampling, num_samples=num_samples, key=key, num_logps=num_logps)
        for p, key in zip(prompts, names, strict=True)
    ]
    engine = Engine(
        model,
        max_rows=max(1, min(max_rows, len(prompts) * num_samples)),
        max_length=max((len(p) for p in prompts), default=1) + sampling.max_new_tokens,
    )
    # Longest prompts first: a step reads as many keys of every row as the longest row has.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    samples = {i: engine.submit(requests[i]) for i in order}
    row_of = {id(s): i * num_samples + s.index for i in order for s in samples[i]}
    with Ready(model, dtype):
        while engine.busy:
            made = engine.step()
            if on_token is not None:
                for row, token in sorted((row_of[id(m.sample)], m.token) for m in made):
                    on_token(row, token)
    return [[sample.completion() for sample in samples[i]] for i in range(len(prompts))]


def stream(
    model: PreTrainedModel,
    prompt: np.ndarray,
    sampling: Sampling,
    *,
    key: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Iterator[int]:
    """New token ids of one sample as they are made, the stop token included: as `generate`."""
    engine = Engine(model, max_rows=1, max_length=len(prompt) + sampling.max_new_tokens)
    engine.submit(Request(np.asarray(prompt), sampling, key=key))
    at_work = Ready(model, dtype)
    while engine.busy:
        with at_work:  # not across a yield: the caller's torch state is its own
            made = engine.step()
        for _, token in made:
            yield token


class Ready:
    """A context for calls of a model that only generates; it can be entered again and again.

    In it the model is in evaluation mode, over slots, with packed weights and fused parts, and the
    thread computes without gradients or recompilation, matrix products in `dtype`. The weights are
    those of the moment it was made: when they change, make another one.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        self._model, self._dtype = model, dtype
        self._stack = ExitStack()
        self._parts: list[PackedLinears | FusedParts | FusedLayers] = []
        with self:
            packed, parts = PackedLinears(model, dtype), FusedParts(model)
            with packed(), parts():
                self._parts = [packed, parts, FusedLayers(model, packed)]

    def __enter__(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(autocast(self._dtype, self._model.device))
            if "torch._dynamo" in sys.modules:
                # layers compiled for training would recompile for every shape of a decode
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(slot_attention(self._model))
            for part in self._parts:
                stack.enter_context(part())
            stack.callback(self._model.train, self._model.training)
            self._model.eval()
            self._stack = stack.pop_all()

    def __exit__(self, *error: object) -> None:
        self._stack.close()
