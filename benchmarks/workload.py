"""What every side is given: the same weights, the same token ids, the same steps.

Written once per run, from a seed, as plain files: a Hugging Face folder, a .npy and .jsonl. The
"text" of a token is the word w<id>, split at blanks, so that ids survive a round trip through text
exactly and no side pays for a tokenizer that another side does not.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

PAD, END, UNKNOWN = 0, 1, 2
NUM_SPECIAL = 3


@dataclass(frozen=True)
class Shape:
    """A Llama: width, layers and inner width of the feed-forward part; heads are 64 wide."""

    width: int
    layers: int
    inner: int
    vocab: int
    kv_heads: int | None = None  # None: as many as heads

    @property
    def num_matmul_weights(self) -> int:
        """Weights that a token is multiplied with: all layers and the (tied) output layer."""
        keys = 2 * self.width * 64 * (self.kv_heads or self.width // 64)
        block = 2 * self.width**2 + keys + 3 * self.width * self.inner
        return self.layers * block + self.width * self.vocab


SHAPES = {
    "1m": Shape(width=128, layers=2, inner=344, vocab=2048),
    "4m": Shape(width=256, layers=4, inner=688, vocab=4096),
    "10m": Shape(width=256, layers=8, inner=896, vocab=8192),
    "135m": Shape(width=576, layers=30, inner=1536, vocab=49152, kv_heads=3),  # SmolLM2-135M's
}


@dataclass(frozen=True)
class Plan:
    """Steps of one cell. `samples` a step: rows, conversations, pairs or prompts."""

    samples: int
    warmup: int
    steps: int

    @property
    def num_samples(self) -> int:
        return self.samples * (self.warmup + self.steps)


PLANS = {
    "pretrain": Plan(samples=8, warmup=1, steps=3),
    "sft": Plan(samples=16, warmup=1, steps=4),
    "lora": Plan(samples=16, warmup=1, steps=3),
    "dpo": Plan(samples=8, warmup=1, steps=4),
    "grpo": Plan(samples=16, warmup=1, steps=2),
    "decode": Plan(samples=64, warmup=1, steps=1),
    "group": Plan(samples=16, warmup=1, steps=1),
    "stream": Plan(samples=1, warmup=1, steps=3),
    "ragged": Plan(samples=64, warmup=1, steps=1),
}
ROW = 512  # tokens of a pre-training row
MAX_CONVERSATION = 1024
MAX_ANSWER = 512
GROUP = 8  # samples a prompt in GRPO
NEW_TOKENS = 64
LEARNING_RATE = 1e-4
RANK, ALPHA = 16, 32  # of LoRA, on all linear layers but the head
GRPO_LEARNING_RATE = 1e-6
GRPO_KL = 0.02  # weight of the KL to the reference


def build_workload(folder: Path, kind: str, shape: Shape, plan: Plan, *, seed: int = 0) -> None:
    """Writes model/, the data of `kind` and workload.json (what the workers read) to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    if kind == "pretrain":
        table = rng.integers(NUM_SPECIAL, shape.vocab, (plan.num_samples, ROW + 1))
        np.save(folder / "rows.npy", table.astype(np.int64))
    else:
        samples = _SAMPLES[kind](rng, shape.vocab, plan.num_samples)
        lines = [json.dumps(sample) for sample in samples]
        (folder / "samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    facts = {"kind": kind, "shape": asdict(shape), "plan": asdict(plan), "seed": seed}
    (folder / "workload.json").write_text(json.dumps(facts), encoding="utf-8")
    build_model(folder / "model", shape, seed=seed)


def read_samples(folder: Path) -> list[dict[str, list[int]]]:
    """Rows of samples.jsonl: token ids by part (prompt, answer | chosen, rejected)."""
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def read_plan(folder: Path) -> Plan:
    facts = json.loads((folder / "workload.json").read_text(encoding="utf-8"))
    return Plan(**facts["plan"])


def read_shape(folder: Path) -> Shape:
    facts = json.loads((folder / "workload.json").read_text(encoding="utf-8"))
    return Shape(**facts["shape"])


def words(ids: list[int]) -> str:
    """The text whose token ids are exactly `ids`."""
    return " ".join("</s>" if i == END else f"w{i}" for i in ids)


def _lengths(
    rng: np.random.Generator, count: int, *, mean: float, low: int, high: int
) -> np.ndarray[Any, Any]:
    """Lognormal lengths (sigma 0.8), cut to low..high."""
    sigma = 0.8
    drawn = rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, count)
    return np.clip(drawn, low, high).astype(np.int64)


def _ids(rng: np.random.Generator, vocab: int, length: int) -> list[int]:
    return [int(i) for i in rng.integers(NUM_SPECIAL, vocab, length)]


def _conversations(rng: np.random.Generator, vocab: int, count: int) -> list[dict[str, list[int]]]:
    """Prompt and answer; the answer takes 30 to 80 % of the tokens and ends with END."""
    rows = []
    for length in _lengths(rng, count, mean=150, low=16, high=MAX_CONVERSATION):
        asked = max(4, int(length * rng.uniform(0.2, 0.7)))
        rows.append(
            {
                "prompt": _ids(rng, vocab, asked),
                "answer": [*_ids(rng, vocab, int(length) - asked - 1), END],
            }
        )
    return rows


def _pairs(rng: np.random.Generator, vocab: int, count: int) -> list[dict[str, list[int]]]:
    lengths = [
        _lengths(rng, count, mean=100, low=8, high=MAX_ANSWER) for _ in range(3)
    ]  # prompt, chosen, rejected
    return [
        {
            "prompt": _ids(rng, vocab, int(prompt)),
            "chosen": [*_ids(rng, vocab, int(chosen) - 1), END],
            "rejected": [*_ids(rng, vocab, int(rejected) - 1), END],
        }
        for prompt, chosen, rejected in zip(*lengths, strict=True)
    ]


def _prompts(rng: np.random.Generator, vocab: int, count: int) -> list[dict[str, list[int]]]:
    return [
        {"prompt": _ids(rng, vocab, int(length))}
        for length in _lengths(rng, count, mean=100, low=8, high=256)
    ]


def _asked(
    rng: np.random.Generator, vocab: int, count: int, *, prompt: int, new: int
) -> list[dict[str, list[int]]]:
    """Prompts of one length, and answers that say by their length how many tokens to make."""
    return [{"prompt": _ids(rng, vocab, prompt), "answer": [END] * new} for _ in range(count)]


def _ragged(rng: np.random.Generator, vocab: int, count: int) -> list[dict[str, list[int]]]:
    """Prompts of 8 to 256 tokens and answers of 8 to 512."""
    return [
        {"prompt": _ids(rng, vocab, int(length)), "answer": [END] * int(new)}
        for length, new in zip(
            _lengths(rng, count, mean=100, low=8, high=256),
            _lengths(rng, count, mean=100, low=8, high=512),
            strict=True,
        )
    ]


_SAMPLES: Mapping[str, Any] = {
    "decode": partial(_asked, prompt=64, new=128),
    "group": partial(_asked, prompt=256, new=128),
    "stream": partial(_asked, prompt=64, new=128),
    "ragged": _ragged,
    "sft": _conversations,
    "lora": _conversations,
    "dpo": _pairs,
    "grpo": _prompts,
}


def build_model(folder: Path, shape: Shape, *, seed: int) -> None:
    """A random Llama with tied embeddings and its word tokenizer, as a Hugging Face folder."""
    build_weights(folder, shape, seed=seed)
    _build_tokenizer(shape.vocab).save_pretrained(folder)


def build_weights(
    folder: Path, shape: Shape, *, seed: int, context: int = 2048, pad: int = PAD, end: int = END
) -> None:
    """The model without a tokenizer; pad, end: ids of those two tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(seed)
    heads = shape.width // 64
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=heads,
        num_key_value_heads=shape.kv_heads or heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        pad_token_id=pad,
        bos_token_id=end,
        eos_token_id=end,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def _build_tokenizer(vocab: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"<pad>": PAD, "</s>": END, "<unk>": UNKNOWN}
    table = special | {f"w{i}": i for i in range(NUM_SPECIAL, vocab)}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
