"""Talking to a model folder: a chat in the terminal, and texts for scripts."""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from rung.engine.detokenise import Detokeniser
from rung.engine.generate import generate, stream
from rung.engine.sampling import Completion, Sampling
from rung.errors import DataError, RungError
from rung.model.load import context_length, load_model
from rung.model.types import PreTrainedModel
from rung.tokens.chat import render
from rung.tokens.tokenizer import Tokenizer, load_tokenizer

CHAT_SAMPLING = Sampling(max_new_tokens=256, temperature=0.7, top_p=0.95)


@dataclass(frozen=True)
class Answer:
    """One generated text. stopped: False when it was cut off at a limit."""

    text: str
    stopped: bool
    num_tokens: int


def generate_text(
    folder: Path,
    prompts: Sequence[str],
    *,
    chat: bool,
    system: str | None = None,
    sampling: Sampling = CHAT_SAMPLING,
    num_samples: int = 1,
    device: torch.device | str = "cpu",
) -> list[list[Answer]]:
    """Answers to `prompts` from a model folder, `num_samples` for each.

    chat: each prompt is a user's message in the chat template; otherwise the model continues the
    text. Special tokens are left out of the answers. DataError: a prompt longer than the context.
    """
    tokenizer = load_tokenizer(folder)
    ids = [prompt_ids(tokenizer, prompt, chat=chat, system=system) for prompt in prompts]
    model = load_model(folder, device=device)
    sampling = replace(sampling, stop_ids=tuple(tokenizer.stop_ids))
    samples = generate(model, ids, sampling, num_samples=num_samples)
    return [[_answer(tokenizer, completion) for completion in row] for row in samples]


def prompt_ids(
    tokenizer: Tokenizer, prompt: str, *, chat: bool, system: str | None = None
) -> np.ndarray:
    """Ids int32 [n] a model is given for `prompt`, as a user's message or as text to continue."""
    if chat:
        messages = [*_opening(system), {"role": "user", "content": prompt}]
        return render(tokenizer, messages, generation_prompt=True).ids
    if system:
        raise DataError("a system message needs the chat template; leave it out to continue text")
    return np.append(np.int32(tokenizer.bos), tokenizer.encode(prompt))


class Conversation:
    """A chat with one model: what was said, and what still fits the context."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        *,
        system: str | None = None,
        sampling: Sampling = CHAT_SAMPLING,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._sampling = replace(sampling, stop_ids=tuple(tokenizer.stop_ids))
        self._opening = _opening(system)
        self._turns: list[dict[str, str]] = []
        self._asked = 0
        # Without room kept for it an answer would end in its first words.
        context = context_length(model)
        self._most = context - min(sampling.max_new_tokens, context // 4)

    @property
    def messages(self) -> list[dict[str, str]]:
        """The messages that the next answer sees."""
        return self._opening + self._turns

    def reset(self) -> None:
        """Forget everything but the system message."""
        self._turns = []

    def ask(self, text: str, *, write: Callable[[str], None]) -> int:
        """Answer `text`, piece by piece through `write`; how many old messages were dropped.

        Ctrl-C ends the answer, and what was said so far stays. DataError: the message alone is
        longer than the context; the conversation is as before.
        """
        turns = [*self._turns, {"role": "user", "content": text}]
        ids, dropped = self._fit(turns)
        pieces: list[str] = []

        def say(piece: str) -> None:
            pieces.append(piece)
            if piece:
                write(printable(piece))

        text_of = Detokeniser(self._tokenizer.decode)
        self._asked += 1
        try:
            for token in stream(self._model, ids, self._sampling, key=self._asked):
                say(text_of.push(token))
        except KeyboardInterrupt:
            pass
        say(text_of.finish())
        self._turns = [*turns[dropped:], {"role": "assistant", "content": "".join(pieces)}]
        return dropped

    def _fit(self, turns: list[dict[str, str]]) -> tuple[np.ndarray, int]:
        """Ids of the newest turns that fit, and how many old messages they leave out."""
        for dropped in range(0, len(turns), 2):  # a question goes with its answer
            messages = self._opening + turns[dropped:]
            ids = render(self._tokenizer, messages, generation_prompt=True).ids
            if len(ids) <= self._most:
                return ids, dropped
        raise DataError(
            f"this message takes {len(ids)} tokens with what frames it, and the model reads at most"
            f" {self._most}: shorten it"
        )


def chat(
    folder: Path,
    *,
    system: str | None = None,
    sampling: Sampling = CHAT_SAMPLING,
    device: torch.device | str = "cpu",
    read: Callable[[str], str] = input,
    write: Callable[[str], None] | None = None,
) -> None:
    """Chat with a model folder in the terminal until /quit, Ctrl-D, or Ctrl-C at the prompt."""
    out = _print_now if write is None else write
    talk = Conversation(
        load_model(folder, device=device), load_tokenizer(folder), system=system, sampling=sampling
    )
    out("/reset forgets the conversation, /quit leaves, Ctrl-C ends an answer.\n")
    while True:
        try:
            text = read("> ").strip()
        except (EOFError, KeyboardInterrupt):
            out("\n")
            return
        if text == "/quit":
            return
        if text == "/reset":
            talk.reset()
            out("(forgotten)\n")
        elif text.startswith("/") and text[1:].isalpha():
            out(f"(no command {text}; there are /reset and /quit)\n")
        elif text:
            _answer_aloud(talk, text, out)


def _answer_aloud(talk: Conversation, text: str, out: Callable[[str], None]) -> None:
    try:
        dropped = talk.ask(text, write=out)
    except RungError as error:
        out(f"({error})\n")
        return
    out("\n")
    if dropped:
        out(
            f"(the conversation is longer than the model's context: the oldest {dropped} messages"
            " were dropped)\n"
        )


def printable(text: str) -> str:
    """`text` without control characters: a model's output must not steer the terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def _opening(system: str | None) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}] if system else []


def _answer(tokenizer: Tokenizer, completion: Completion) -> Answer:
    return Answer(tokenizer.decode(completion.ids), completion.stopped, len(completion.ids))


def _print_now(text: str) -> None:
    print(text, end="", flush=True)
