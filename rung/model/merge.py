"""Merging: an adapter added to the weights under it, which leaves a plain model.

Stage `merge` does it for good and compares: the largest difference of a logit between base plus
adapter and the merged model, over texts of several kinds. Both in float32.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rung.config import Config as BaseConfig
from rung.errors import ArtefactError, first_line
from rung.model.adapter_config import require_peft
from rung.model.adapters import saved_bits
from rung.model.fourbit import hush_unused, require_four_bit, round_trip
from rung.model.load import context_length, load_model, save_model
from rung.model.types import PreTrainedModel
from rung.store.adapter import base_id, layers_below
from rung.store.context import Notes, StageContext
from rung.tokens.tokenizer import Tokenizer, load_tokenizer

TOLERANCE = 1e-3
"""Of a logit, in float32. Logits are of order 10, of which float32 keeps seven digits; the sums of
thirty layers lose two of them. A merge in bf16, or onto another base, is off by 0.05 and more."""

TEXTS = (
    "The quick brown fox jumps over the lazy dog. Then it sat down by the river and thought.",
    "def add(a, b):\n    return a + b\n\n\nprint(add(2, 3))\n",
    "Question: what does aspirin do? Answer: it lowers fever and eases pain; 500 mg is usual.",
    '{"name": "search", "arguments": {"query": "weather", "days": 3}}',
)


class Config(BaseConfig):
    """Merging has no options."""


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The plain model that the adapter in `folder` makes of its base, `model`, which is used up."""
    with _over(model, folder) as wrapped:
        merged: PreTrainedModel = wrapped.merge_and_unload()
    _forget(merged)
    return merged.requires_grad_(True).eval()


@contextmanager
def _over(model: PreTrainedModel, folder: Path) -> Iterator[Any]:
    """peft's model: base and adapter, not merged; the base as the adapter saw it in training."""
    require_peft(f"{folder}: an adapter")
    hush_unused()
    from peft import PeftModel

    bits = saved_bits(folder)
    if bits is not None:
        require_four_bit(model.device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers
            # a tensor that is missing, or that the base has no place for, is only warned of
            warnings.filterwarnings("error", message=".*adapter keys.*")
            wrapped = PeftModel.from_pretrained(
                model, str(folder), torch_device=str(model.device), local_files_only=True
            )
    except (ValueError, RuntimeError, KeyError, OSError, UserWarning) as error:
        raise ArtefactError(
            f"{folder}: this adapter does not fit its base: {first_line(error)}"
        ) from error
    if bits is not None:
        for module in wrapped.modules():
            if hasattr(module, "lora_A"):
                weight = module.get_base_layer().weight
                turned = getattr(module, "fan_in_fan_out", False)
                left = round_trip(weight.data.T if turned else weight.data)
                weight.data = left.T.contiguous() if turned else left
    yield wrapped.eval()


def _forget(model: PreTrainedModel) -> None:
    """A merged model bears no trace of peft, so that a new adapter is the only one."""
    for name in ("peft_config", "_hf_peft_config_loaded"):
        model.__dict__.pop(name, None)


def run(context: StageContext, config: Config) -> Notes:
    """A whole model from an adapter and what is under it, with the largest gap of a logit."""
    folder = context.input("model").path
    if base_id(folder) is None:
        raise ArtefactError(
            f"{context.names.get('model', folder.name)} is a whole model already: there is no "
            "adapter to merge"
        )
    tokenizer = load_tokenizer(folder)
    base = load_model(layers_below(folder)[1])
    sequences = token_sequences(tokenizer, limit=context_length(base))
    with _over(base, folder) as wrapped:
        before = logits_of(wrapped, sequences)
        merged: PreTrainedModel = wrapped.merge_and_unload()
    _forget(merged)
    save_model(merged, context.out)
    tokenizer.save_into(context.out)
    after = logits_of(load_model(context.out), sequences)
    report = compare(before, after)
    context.progress.say(
        f"merged: largest logit gap {report['largest_gap']:.2g} over {report['tokens']} tokens "
        f"(at most {TOLERANCE:g}): {'pass' if report['passed'] else 'FAIL'}"
    )
    if not report["passed"]:
        raise ArtefactError(
            f"the merged model is not the adapter: a logit differs by {report['largest_gap']:.2g}, "
            f"at most {TOLERANCE:g} is rounding; keep the adapter, which every command reads"
        )
    return {"figures": report}


def token_sequences(tokenizer: Tokenizer, *, limit: int) -> list[np.ndarray]:
    """Ids of texts of several kinds, each with its begin token."""
    encoded = tokenizer.encode_batch(list(TEXTS))
    return [np.append(np.int32(tokenizer.bos), ids)[:limit] for ids in encoded]


@torch.no_grad()
def logits_of(model: Any, sequences: Sequence[np.ndarray]) -> list[Tensor]:
    """Logits [T, V] of each sequence by a plain call, without forests."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner.set_attn_implementation("eager")
    out = []
    for ids in sequences:
        batch = torch.from_numpy(ids.astype(np.int64))[None].to(model.device)
        out.append(model(input_ids=batch, use_cache=False).logits[0].float())
    return out


def compare(before: Sequence[Tensor], after: Sequence[Tensor]) -> dict[str, Any]:
    """The largest gap, the share of positions with the same greedy token, pass or fail."""
    gap = max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))
    same = torch.cat([a.argmax(-1) == b.argmax(-1) for a, b in zip(before, after, strict=True)])
    return {
        "largest_gap": gap,
        "tolerance": TOLERANCE,
        "passed": gap <= TOLERANCE,  # False for a nan, too
        "same_greedy_token": float(same.float().mean()),
        "tokens": len(same),
    }
