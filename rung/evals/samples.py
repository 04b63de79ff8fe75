"""What a model writes for a fixed list of prompts: the same after every stage, side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rung.engine.generate import generate
from rung.engine.sampling import Sampling
from rung.evals.answers import answer_rows
from rung.tokens.tokenizer import Tokenizer

QUESTIONS = (
    "What is the capital of France?",
    "What does `json.dumps` do?",
    "Which module is `deepcopy` in?",
    "What is the signature of `os.path.join`?",
    "What does `torch.nn.Linear` do?",
    "What does `numpy.frobnicate_axes` do?",
    "Hello, who are you?",
)
"""Asked twice: as plain text to go on from, and as a question of a chat."""

CONTINUATIONS = (
    "What is the capital of France?",
    "What does `json.dumps` do?",
    "def sorted(",
    "Return the number of",
    "Raises ValueError if",
)


def continue_texts(
    model: Any,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    sampling: Sampling,
    *,
    dtype: torch.dtype,
) -> list[dict[str, Any]]:
    """Each text as the beginning of a document, and how the model goes on."""
    starts = tokenizer.encode_batch(list(texts))
    prompts = [np.concatenate(([tokenizer.bos], ids)).astype(np.int32) for ids in starts]
    done = generate(model, prompts, sampling, dtype=dtype)
    return [
        {"prompt": text, "text": tokenizer.decode(first.ids), "stopped": first.stopped}
        for text, (first, *_) in zip(texts, done, strict=True)
    ]


def answer_questions(
    model: Any,
    tokenizer: Tokenizer,
    questions: Sequence[str],
    sampling: Sampling,
    *,
    dtype: torch.dtype,
) -> list[dict[str, Any]]:
    """Each question as a chat of one turn, and the answer."""
    rows = [{"id": q, "messages": [{"role": "user", "content": q}]} for q in questions]
    answers = answer_rows(model, tokenizer, rows, sampling, dtype=dtype)
    return [
        {"prompt": question, "text": answer.text, "stopped": answer.stopped}
        for question, answer in zip(questions, answers, strict=True)
    ]
