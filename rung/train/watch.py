"""What the model says in the course of a stage to a few held-out prompts, for people to watch."""

import itertools
import math
import time
from collections.abc import Iterable, Sequence

from rung.engine.generate import generate
from rung.engine.sampling import Sampling
from rung.model.load import context_length
from rung.model.precision import pick_device, pick_dtype
from rung.model.types import PreTrainedModel
from rung.text.messages import Message
from rung.tokens.chat import render
from rung.tokens.tokenizer import Tokenizer
from rung.train.loop import Sample
from rung.train.optim import TrainConfig

PROMPTS, TOKENS = 2, 48
LOOKS = 6
SHARE = 0.01  # of the time so far: with more than this spent on looks, the next is left out
_TRIED = 16  # conversations that are looked at for short ones


class Watch:
    """The likeliest answers to the same prompts at up to LOOKS places of a stage.

    It draws no random number of the training's and leaves the model as it was, so what is trained
    does not depend on it; how often it looks depends on the clock.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        conversations: Iterable[Sequence[Message]],
        config: TrainConfig,
        *,
        total: int,
    ) -> None:
        """conversations: up to the answer that is asked for, or with it. total: iterations."""
        self._model, self._tokenizer = model, tokenizer
        self._dtype = pick_dtype(config.precision, pick_device(config.device))
        self._every = max(1, math.ceil(total / LOOKS))
        longest = context_length(model) - TOKENS
        self._asked = [
            (told[-1]["content"], ids)
            for told in map(_question, itertools.islice(conversations, _TRIED))
            if told and len(ids := render(tokenizer, told, generation_prompt=True).ids) <= longest
        ][:PROMPTS]
        self._begun, self._spent = time.monotonic(), 0.0

    def __call__(self, iteration: int) -> list[Sample]:
        """Samples after this iteration, where one of the places is."""
        began = time.monotonic()
        due = self._asked and (iteration + 1) % self._every == 0
        if not due or self._spent > SHARE * (began - self._begun):
            return []
        modes = [(module, module.training) for module in self._model.modules()]
        sampling = Sampling(
            max_new_tokens=TOKENS, temperature=0.0, stop_ids=self._tokenizer.stop_ids
        )
        prompts = [ids for _, ids in self._asked]
        said = generate(self._model, prompts, sampling, dtype=self._dtype)
        for module, training in modes:  # dropout can be on in some layers only
            module.training = training
        self._spent += time.monotonic() - began
        return [
            Sample(question, self._tokenizer.decode(answers[0].ids))
            for (question, _), answers in zip(self._asked, said, strict=True)
        ]


def _question(conversation: Sequence[Message]) -> Sequence[Message]:
    """`conversation` up to the answer; empty where nothing is asked."""
    asks = conversation and conversation[-1]["role"] != "assistant"
    return conversation if asks else conversation[:-1]
