"""Is the export the same model? Loaded again by other readers, it is asked the same.

Ids of a conversation and of plain texts, logits over them, and greedy tokens. The reference is the
artefact under Rung's own attention for the logits, and Rung's own renderer for the ids.
"""

import importlib.util
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rung.errors import ArtefactError
from rung.exchange.export import Export
from rung.exchange.gguf_header import GGUFHeader, read_gguf_header
from rung.exchange.gguf_read import read_gguf_model, read_gguf_vocabulary
from rung.exchange.gguf_vocabulary import can_spell, mark_of_space
from rung.model.attention import to_torch
from rung.model.forward import hidden_states, output_head
from rung.model.fourbit import hush_unused
from rung.model.load import context_length, load_model
from rung.model.types import PreTrainedModel
from rung.tokens.chat import answer_ids, render
from rung.tokens.forest import document, pack
from rung.tokens.tokenizer import Tokenizer, load_tokenizer

NUM_GREEDY = 24
LIMITS = {"": 1e-5, "f32": 1e-5, "f16": 1e-2, "bf16": 5e-2, "q8_0": 5e-2}
"""Largest gap of a logit, as a share of the largest logit. float32 keeps seven digits, of which
the sums of the layers lose one or two; f16 and bf16 keep three and two, q8_0 two."""
QUESTIONS = (
    "What is the capital of France?",
    "Write a Python function that adds two numbers, please:\n\ndef add(a, b):",
)
TEXTS = (
    "Once upon a time there was a little girl who",
    "3 na\u00efve caf\u00e9s\n\n\tdef f(x):\n        return x**2  # \u4e2d\u6587 \U0001f642",
)


@dataclass(frozen=True)
class Check:
    """One reader's answer. gap and limit: shares of the largest logit, None where none is read."""

    reader: str
    same_ids: bool
    gap: float | None
    limit: float | None
    same_tokens: int
    num_tokens: int
    greedy_must_match: bool

    @property
    def passed(self) -> bool:
        near = self.gap is None or (self.limit is not None and self.gap <= self.limit)
        tokens = not self.greedy_must_match or self.same_tokens == self.num_tokens
        return self.same_ids and near and tokens

    def row(self) -> dict[str, Any]:
        return {
            "reader": self.reader,
            "passed": self.passed,
            "same_ids": self.same_ids,
            "largest_gap": self.gap,
            "limit": self.limit,
            "same_greedy_tokens": self.same_tokens,
            "greedy_tokens": self.num_tokens,
        }

    def sentence(self) -> str:
        ids = "same ids" if self.same_ids else "OTHER IDS"
        gap = "" if self.gap is None else f", largest logit gap {self.gap:.1e} (<= {self.limit:g})"
        return (
            f"verify: {self.reader}: {ids}{gap}, {self.same_tokens} of {self.num_tokens} greedy "
            f"tokens the same: {'pass' if self.passed else 'FAIL'}"
        )


@dataclass(frozen=True)
class _Asked:
    """What every reader is asked: prompts, and the answers of the artefact."""

    prompts: list[np.ndarray]
    logits: list[torch.Tensor]
    greedy: list[list[int]]
    num_chats: int


def verify_export(folder: Path, done: Export, *, say: Callable[[str], None]) -> list[Check]:
    """The checks of an export of the artefact in `folder`, one a reader."""
    tokenizer = load_tokenizer(folder)
    model = load_model(folder)
    limit = context_length(model)
    if done.to == "gguf":  # which may be one sliding window
        limit = int(read_gguf_header(done.gguf).of_model("context_length"))
    asked = _ask(model, tokenizer, limit=max(2, limit - NUM_GREEDY))
    del model
    if done.to == "gguf":
        checks = [_check_gguf(asked, tokenizer, done)]
        if importlib.util.find_spec("llama_cpp") is None:
            say("verify: llama-cpp-python is not installed: read by transformers' GGUF reader only")
        else:
            checks.append(_check_llama_cpp(asked, tokenizer, done))
        return checks
    return [_check_hf(asked, tokenizer, done)]


@torch.no_grad()
def _ask(model: PreTrainedModel, tokenizer: Tokenizer, *, limit: int) -> _Asked:
    chats = [
        render(tokenizer, [{"role": "user", "content": q}], generation_prompt=True).ids
        for q in QUESTIONS
    ]
    texts = [np.append(np.int32(tokenizer.bos), tokenizer.encode(text)) for text in TEXTS]
    prompts = [ids[:limit] for ids in (*chats, *texts)]
    head = output_head(model)
    logits = []
    for ids in prompts:
        hidden = hidden_states(model, to_torch(pack([document(ids)])))
        out = hidden @ head.weight.T
        out = (out if head.bias is None else out + head.bias).float() * head.scale
        logits.append(torch.tanh(out / head.softcap) * head.softcap if head.softcap else out)
    model.set_attn_implementation("eager")
    return _Asked(prompts, logits, [_greedy(model, ids) for ids in prompts], len(chats))


@torch.no_grad()
def _greedy(model: PreTrainedModel, prompt: np.ndarray) -> list[int]:
    """The likeliest next tokens one by one: nothing of the generation config takes part."""
    ids = torch.from_numpy(prompt.astype(np.int64))[None]
    past, found = None, []
    for _ in range(NUM_GREEDY):
        out: Any = model(ids, past_key_values=past, use_cache=True)
        past = out.past_key_values
        ids = out.logits[:, -1].argmax(-1, keepdim=True)
        found.append(int(ids))
    return found


@torch.no_grad()
def _measure(asked: _Asked, model: PreTrainedModel) -> tuple[float, int]:
    """(largest gap of a logit as a share of the largest, greedy tokens that agree)."""
    gaps, scales, same = [], [], 0
    for ids, expected, greedy in zip(asked.prompts, asked.logits, asked.greedy, strict=True):
        found = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].float()
        gaps.append(float((found - expected).abs().max()))
        scales.append(float(expected.abs().max()))
        same += _agreeing(_greedy(model, ids), greedy)
    return max(gaps) / max(1.0, *scales), same


def _agreeing(found: Sequence[int], expected: Sequence[int]) -> int:
    """Tokens up to the first that differs: after it the two no longer answer the same prompt."""
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        if one != other:
            return index
    return len(expected)


def _result(asked: _Asked, done: Export, reader: str, *, ids: bool, gap: float, same: int) -> Check:
    limit = LIMITS[done.dtype]
    return Check(
        reader, ids, gap, limit, same, NUM_GREEDY * len(asked.prompts), limit == LIMITS["f32"]
    )


def _check_hf(asked: _Asked, tokenizer: Tokenizer, done: Export) -> Check:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: Any = {"local_files_only": True, "dtype": torch.float32}
    if done.to == "adapter":
        hush_unused()
        from peft import PeftModel

        if not Path(done.base).is_dir():
            raise ArtefactError(
                f"--verify needs the base on this machine, and {done.base} is no folder here"
            )
        base = AutoModelForCausalLM.from_pretrained(done.base, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers
            model: Any = PeftModel.from_pretrained(base, str(done.folder)).eval()
        reader = "peft"
    else:
        model = AutoModelForCausalLM.from_pretrained(str(done.folder), **options).eval()
        reader = "transformers"
    plain = AutoTokenizer.from_pretrained(str(done.folder), local_files_only=True)
    ids = same_ids(plain, tokenizer)
    gap, same = _measure(asked, model)
    return _result(asked, done, reader, ids=ids, gap=gap, same=same)


def same_ids(plain: Any, tokenizer: Tokenizer) -> bool:
    """Whether transformers' tokenizer gives the ids Rung trains with: of texts, of a question, and
    of a conversation with its answer up to the end of it."""
    for text in TEXTS:
        if plain(text, add_special_tokens=False)["input_ids"] != tokenizer.encode(text).tolist():
            return False
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        served = plain.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        if served != render(tokenizer, messages, generation_prompt=True).ids.tolist():
            return False
        whole = [*messages, {"role": "assistant", "content": "Paris, I think."}]
        served = plain.apply_chat_template(whole, tokenize=True, return_dict=False)
        trained = render(tokenizer, whole).ids.tolist()
        if served[: len(trained)] != trained and _ends_with_special(plain, whole, tokenizer):
            return False
    return True


def _ends_with_special(plain: Any, whole: list[dict[str, str]], tokenizer: Tokenizer) -> bool:
    """Where the template itself ends no answer, Rung adds the end, which others do not write."""
    return int(answer_ids(tokenizer, whole[-1]["content"])[-1]) in plain.apply_chat_template(
        whole, tokenize=True, return_dict=False
    )


def _check_gguf(asked: _Asked, tokenizer: Tokenizer, done: Export) -> Check:
    header = read_gguf_header(done.gguf)
    vocabulary = read_gguf_vocabulary(done.gguf, header)
    vocabulary.bpe.encode_special_tokens = True
    ids = _same_text_ids(
        tokenizer, header, lambda text: vocabulary.bpe.encode(text, add_special_tokens=False).ids
    )
    gap, same = _measure(asked, read_gguf_model(done.gguf, header))
    return _result(asked, done, "transformers' GGUF reader", ids=ids, gap=gap, same=same)


def _same_text_ids(
    tokenizer: Tokenizer, header: GGUFHeader, encode: Callable[[str], list[int]]
) -> bool:
    """Whether a reader of the file gives the trained ids of plain texts."""
    content = json.loads(tokenizer.to_json())
    unmarked = not header.metadata.get("tokenizer.ggml.add_space_prefix", True)
    before = " " if unmarked and mark_of_space(content) != "never" else ""
    return all(
        encode(before + text) == tokenizer.encode(text).tolist()
        for text in (*TEXTS, *QUESTIONS)
        if _spelt(content, text)
    )


def _same_chat_ids(tokenizer: Tokenizer, template: str, encode: Callable[[str], list[int]]) -> bool:
    """Whether the file has the chat template, and its text of conversations the trained ids."""
    content = json.loads(tokenizer.to_json())
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        text = tokenizer.chat.text(messages, generation_prompt=True)
        trained = render(tokenizer, messages, generation_prompt=True).ids.tolist()
        plain = text  # the template's own words, too, must be in the vocabulary
        for added in content["added_tokens"]:
            plain = plain.replace(added["content"], "")
        if _spelt(content, plain) and encode(text) != trained:
            return False
    return template == tokenizer.chat.source


def _spelt(content: dict[str, Any], text: str) -> bool:
    """llama.cpp ends the process on a character that a sentencepiece vocabulary cannot spell."""
    return not content["model"].get("byte_fallback") or can_spell(content, text)


def _check_llama_cpp(asked: _Asked, tokenizer: Tokenizer, done: Export) -> Check:
    """llama.cpp itself: its ids, its logits, its greedy tokens."""
    from llama_cpp import Llama

    longest = max(len(ids) for ids in asked.prompts) + NUM_GREEDY
    llama = Llama(str(done.gguf), n_ctx=longest + 8, logits_all=True, verbose=False, n_threads=2)
    header = read_gguf_header(done.gguf)
    ids = _same_text_ids(
        tokenizer,
        header,
        lambda text: llama.tokenize(text.encode("utf-8"), add_bos=False, special=False),
    ) and _same_chat_ids(
        tokenizer,
        str(header.metadata["tokenizer.chat_template"]),
        lambda text: llama.tokenize(text.encode("utf-8"), add_bos=False, special=True),
    )
    gaps, scales, same = [], [], 0
    for prompt, expected, greedy in zip(asked.prompts, asked.logits, asked.greedy, strict=True):
        llama.reset()
        llama.eval(prompt.tolist())
        found = np.array(llama.scores[: len(prompt)])
        gaps.append(float(np.abs(found - expected.numpy()).max()))
        scales.append(float(expected.abs().max()))
        own = []
        for _ in range(NUM_GREEDY):
            own.append(int(np.argmax(llama.scores[llama.n_tokens - 1])))
            llama.eval(own[-1:])
        same += _agreeing(own, greedy)
    gap = max(gaps) / max(1.0, *scales)
    checked = _result(asked, done, "llama.cpp", ids=ids, gap=gap, same=same)
    # llama.cpp keeps its cache in float16, whatever the file
    limit = max(LIMITS["f16"], LIMITS[done.dtype])
    return Check(checked.reader, ids, gap, limit, same, checked.num_tokens, False)
