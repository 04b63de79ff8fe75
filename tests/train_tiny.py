"""Tiny real objects for the tests of training: a model, a tokenizer, artefacts, a context."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from rung.feedback.schema import Ranking
from rung.model.attention import register
from rung.model.load import save_model
from rung.store.artefact import Artefact, FileEntry
from rung.store.context import StageContext
from rung.tokens.bpe import train_bpe, write_tokenizer
from rung.tokens.forest import group
from rung.tokens.tokenizer import Tokenizer, load_tokenizer
from rung.train.ranked import RankedTree


class Quiet:
    """A progress that remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def start(self, title: str, *, total: float | None = None, unit: str = "") -> None: ...

    def update(self, done: float, **figures: float | str) -> None: ...

    def say(self, line: str) -> None:
        self.lines.append(line)

    def finish(self) -> None: ...


def tiny_model(vocab: int = 32, *, width: int = 16, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        attn_implementation=register(),
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(3)  # far from uniform, so that a wrong sign shows
    return model


@torch.no_grad()
def plain_logp(model, prompt, answer) -> float:
    """Log-probability of one answer, alone, through transformers' own attention and logits."""
    ids = np.concatenate([prompt, answer])
    model.config._attn_implementation = "eager"
    logits = model(torch.from_numpy(ids)[None]).logits[0].double().numpy()
    model.config._attn_implementation = "rung_forest"
    table = log_softmax(logits, axis=-1)
    return float(sum(table[i - 1, ids[i]] for i in range(len(prompt), len(ids))))


def ranked_trees(num: int = 4, *, seed: int = 0) -> list[RankedTree]:
    """Random prompts of three random answers; ranks with ties."""
    draw = np.random.default_rng(seed)
    record = Ranking("x", [], [], [], [], [])
    return [
        RankedTree(
            group(
                draw.integers(0, 32, size=draw.integers(1, 6)),
                [draw.integers(0, 32, size=draw.integers(1, 5)) for _ in range(3)],
            ),
            np.array([[1, 2, 3], [2, 1, 1], [3, 3, 1]][index % 3]),
            record,
        )
        for index in range(num)
    ]


def tiny_tokenizer(folder: Path) -> Tokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    texts = ["good answer here", "bad answer there", "what is it? tell me now"] * 20
    write_tokenizer(train_bpe(texts, vocab_size=300), folder)
    return load_tokenizer(folder)


def artefact(folder: Path, kind: str) -> Artefact:
    """What lies in `folder`, as an input of a stage."""
    files = {p.name: FileEntry("0" * 64, p.stat().st_size) for p in sorted(folder.iterdir())}
    return Artefact(f"{kind}-id", kind, folder, "test", {}, {}, files)


def model_artefact(folder: Path, *, seed: int = 0) -> Artefact:
    tokenizer = tiny_tokenizer(folder)
    save_model(tiny_model(tokenizer.vocab_size, seed=seed), folder)
    return artefact(folder, "model")


def context(root: Path, **inputs: Artefact) -> StageContext:
    out, run = root / "out", root / "run"
    out.mkdir(parents=True, exist_ok=True)
    run.mkdir(parents=True, exist_ok=True)
    return StageContext(inputs, {}, out, run, Quiet(), {})


def feedback_artefact(folder: Path, *, num: int, seed: int = 0) -> Artefact:
    """Rankings of three answers in which "good" beats the others; every third has a tie."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    lines = []
    for index in range(num):
        order = draw.permutation(3)
        answers = np.array(["good answer", "bad answer", "answer there"])[order]
        ranks = np.array([1, 2, 2 if index % 3 == 0 else 3])[order]
        row = {
            "id": f"r{index}",
            "prompt": [{"role": "user", "content": f"what is {index}?"}],
            "answers": answers.tolist(),
            "stopped": [True, True, True],
            "ranks": ranks.tolist(),
            "flags": [[], [], []],
            "ratings": None,
            "annotator": "simulated-1",
            "kind": "simulated",
            "source": {"utilities": np.array([1.0, 0.5, 0.2])[order].tolist()},
        }
        lines.append(json.dumps(row))
    (folder / "rankings.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "report.json").write_text("{}")
    return artefact(folder, "feedback")


def labelled_artefact(folder: Path, *, num: int) -> Artefact:
    """Single answers: thumbs up where it is "good answer", down where it is "bad answer"."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "id": f"l{index}",
            "prompt": [{"role": "user", "content": f"what is {index}?"}],
            "answers": ["good answer" if index % 2 else "bad answer"],
            "ranks": [1],
            "labels": [bool(index % 2)],
        }
        for index in range(num)
    ]
    (folder / "rankings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return artefact(folder, "feedback")


def dataset_artefact(folder: Path, *, num: int) -> Artefact:
    """Prompts whose right answer is "good answer"; every fourth asks for what does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, first in (("prompts", num, 0), ("heldout", 6, 1000), ("train", 1, 2000)):
        rows = [instruction(first + index) for index in range(count)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    return artefact(folder, "dataset")


def instruction(index: int) -> dict[str, Any]:
    exists = index % 4 != 0
    answer = "good answer" if exists else "There is no `x.y` that I know of."
    return {
        "id": f"explain/{index}",
        "format": "explain" if exists else "unknown",
        "split_group": "seen" if exists else "made_up",
        "messages": [
            {"role": "user", "content": f"what is {index}?"},
            {"role": "assistant", "content": answer},
        ],
        "truth": {"name": f"x.f{index}", "exists": exists, "answer": answer, "passage": None},
    }


def same_bytes(a: Path, b: Path, names: Sequence[str]) -> bool:
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in names)
