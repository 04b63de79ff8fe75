"""A reward model's opinion of answers that were served, for the traffic log."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rung.model.attention import to_torch
from rung.model.heads import load_reward_model
from rung.model.precision import pick_device
from rung.tokens.chat import answer_ids, render
from rung.tokens.forest import group, pack
from rung.tokens.tokenizer import load_tokenizer


class RewardScorer:
    """Scores in standard deviations from the mean of the answers it was trained on.

    It has a copy of weights and tokenizer to itself: it runs on the log's thread, beside the
    engine, and competes with it for the processor.
    """

    def __init__(self, folder: Path, *, device: str = "auto") -> None:
        self._model = load_reward_model(folder, device=pick_device(device))
        self._tokenizer = load_tokenizer(folder)
        self._device = self._model.head.mean.device

    @torch.no_grad()
    def __call__(self, messages: Sequence[dict[str, Any]], answers: Sequence[str]) -> list[float]:
        """A score for each answer to `messages`."""
        prompt = render(self._tokenizer, messages, generation_prompt=True).ids
        tree = group(prompt, [answer_ids(self._tokenizer, answer) for answer in answers])
        scores = self._model.scores(to_torch(pack([tree]), self._device))
        return [round(float(score), 4) for score in scores]
