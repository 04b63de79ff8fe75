"""What each stage costs before it has ever run here: rough rates, and sizes handed down.

Measured with recipes/quickstart.yaml on two cores of a server processor: bf16 matrix products of
0.4 TFLOP/s (rung/model/peak.py), models of 1.4 and 4.3 million parameters. Training is scaled to
the products of this machine, all else by nothing: right within a factor of two there, a guess
elsewhere. No GPU was measured, so nothing is said of the time that a model takes on one.
"""

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from rung.errors import ResourceError
from rung.model.budget import BudgetConfig, resolve_budget
from rung.model.memory import lora_parameters, memory_estimate
from rung.model.shape import Shape, read_shape, resolve
from rung.text.files import files_fingerprint
from rung.text.sources import find_sources

SHARE_TEXT, SHARE_CHAT, SHARE_RANKED = 0.25, 0.20, 0.12
"""Of the peak of products that training reaches: 10,000 tokens/s of text, 9,000 of conversations
and 6,000 of answers that share a prompt, at 1.4 M parameters. Larger models reach more."""
SAMPLED_PER_S = 3_000.0  # tokens of a small model, whose steps cost overhead rather than products
SHARE_SAMPLING = 0.1  # of the peak, for a model so large that products are what a step costs
START_SECONDS = 4.0  # of a stage with a model: reading, writing, a look at the result
CONVERSATION, PROMPT, ANSWER = 91, 45, 23  # tokens of the quickstart's rows, on average
DOCUMENT = 512  # tokens of a longish document: what attention costs in a longer context
DATA_GB, HEAP_GB = 1.2, 2.2
"""Of a stage without a model, and of one with a model beside its own needs: one process runs the
whole recipe, and libraries, text and freed blocks stay in it. Measured: 1.9 to 3.1 GB in all."""

Estimate = dict[str, Any]
"""seconds, memory_gb and disk_gb as far as known, and the sizes that children ask for: `bytes` of
text, `vocab`, `model` (a Model), `tokens` of one pass, `prompts`."""
Parents = Mapping[str, Sequence[Mapping[str, Any]]]
"""Role -> what its inputs were estimated at; an empty one where nothing is known of it."""


class Model(NamedTuple):
    shape: Shape
    vocab: int

    def flops(self, tokens: float, *, length: int) -> float:
        """Of training on that many tokens, forward and backward."""
        return tokens * self.shape.flops_per_token(self.vocab, length)


def estimate(command: str, config: Any, parents: Parents) -> Estimate:
    """The estimate of a stage of the table; {} where an input that it hangs on is unknown."""
    rate = _RATES.get(command)
    return rate(config, parents) if rate else {}


def _curate(config: Any, parents: Parents) -> Estimate:
    if (installed := config.source.installed) is not None:
        size = 5e6 * installed.stdlib + 2e6 * len((*installed.packages, *installed.optional))
    else:
        size = float(sum(int(row[1]) for row in files_fingerprint(config.source)))
    size = min(size, config.max_bytes or math.inf)
    return {"bytes": size, **_data(2 + 1.2e-6 * size, disk=0.5 * size)}


def _import(config: Any, parents: Parents) -> Estimate:
    """Of a folder, whose config.json is read; of other sources nothing is known before."""
    folder = Path(config.source)
    try:
        values = SimpleNamespace(**json.loads((folder / "config.json").read_text()))
        shape = read_shape(values, context=int(values.max_position_embeddings))
        model = Model(shape, int(values.vocab_size))
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return {"model": model, **_data(4 + 1e-8 * size, disk=size)}


def _tokenizer(config: Any, parents: Parents) -> Estimate:
    size = min(_sum(parents, "corpora", "bytes"), config.max_bytes or math.inf)
    return {"vocab": config.vocab_size, **_data(1 + 1e-7 * size, disk=30.0 * config.vocab_size)}


def _instruct(config: Any, parents: Parents) -> Estimate:
    rows = config.train_rows + config.prompts
    return {
        "tokens": config.train_rows * CONVERSATION,
        "prompts": config.prompts,
        **_data(2 + 2e-4 * rows, disk=1e3 * rows),
    }


def _files(config: Any, parents: Parents) -> Estimate:
    """Conversations and preferences alike: about four bytes a token."""
    sources = find_sources(config.files)
    size = sum(path.stat().st_size for source in sources for _, path in source.files)
    return {"tokens": size / 4, **_data(1 + 1e-7 * size, disk=size)}


def _labels(config: Any, parents: Parents) -> Estimate:
    names = [*config.files, *config.heldout_files, *config.lines.values()]
    paths = [Path(name) for name in names]
    if config.folder:
        paths += Path(config.folder).rglob("*")
    size = sum(path.stat().st_size for path in paths if path.is_file())
    return {"tokens": size / 4, **_data(1 + 1e-6 * size, disk=size)}


def _classify(config: Any, parents: Parents) -> Estimate:
    model = _first(parents, "model", "model")
    tokens = _first(parents, "labels", "tokens")
    if model is None or tokens is None:
        return {}
    config = config.resolved()
    # a reading without a gradient is a third of a pass; a head alone costs next to nothing
    passes = 1 / 3 if config.backbone == "frozen" else config.epochs + 1 / 3
    flops = config.depth * model.flops(passes * tokens, length=CONVERSATION)
    return _trained(config, model, flops=flops, share=SHARE_CHAT, at_once=config.microbatch_tokens)


def _pretrain(config: Any, parents: Parents) -> Estimate:
    vocab = _first(parents, "tokenizer", "vocab")
    return _stream(config, Model(resolve(config.model), vocab)) if vocab else {}


def _continue(config: Any, parents: Parents) -> Estimate:
    model = _first(parents, "model", "model")
    return _stream(config, model) if model else {}


def _stream(config: Any, model: Model) -> Estimate:
    budget = resolve_budget(
        BudgetConfig(
            optimizer=config.optimizer,
            tokens=config.tokens,
            tokens_per_parameter=config.tokens_per_parameter,
            tokens_per_step=config.tokens_per_step,
        ),
        model.shape,
        vocab=model.vocab,
    )
    flops = model.flops(budget.tokens, length=min(DOCUMENT, model.shape.context))
    at_once = min(config.microbatch_tokens, budget.tokens_per_step)
    return _trained(config, model, flops=flops, share=SHARE_TEXT, at_once=at_once)


def _sft(config: Any, parents: Parents) -> Estimate:
    model = _first(parents, "model", "model")
    tokens = _first(parents, "dataset", "tokens")
    if model is None or tokens is None:
        return {}
    seen = min(tokens * config.epochs, (config.max_steps or math.inf) * config.tokens_per_step)
    flops = model.flops(seen, length=CONVERSATION)
    at_once = min(config.microbatch_tokens, config.tokens_per_step)
    return _trained(config, model, flops=flops, share=SHARE_CHAT, at_once=at_once)


def _collect(config: Any, parents: Parents) -> Estimate:
    model = _first(parents, "model", "model")
    num = min(config.num_prompts, _first(parents, "dataset", "prompts") or config.num_prompts)
    answer = min(ANSWER, config.max_new_tokens)
    sizes = {"tokens": num * (PROMPT + config.answers * answer)}
    if model is None:
        return sizes
    seconds = _sampling_seconds(config, model, tokens=num * config.answers * answer)
    return {**sizes, **_with_model(model, seconds, disk=1e3 * num)}


def _reward(config: Any, parents: Parents) -> Estimate:
    # a reading without a gradient is a third of a pass; a head alone costs next to nothing
    frozen = config.backbone == "frozen"
    return _ranked(config, parents, passes=1 / 3 if frozen else config.epochs + 2 / 3)


def _with_reference(config: Any, parents: Parents) -> Estimate:
    # the reference passes once, forward only: a third of a training pass; it is cached then
    return _ranked(config, parents, passes=config.epochs + 1 / 3, copies=1)


def _without_reference(config: Any, parents: Parents) -> Estimate:
    return _ranked(config, parents, passes=config.epochs)


def _kto(config: Any, parents: Parents) -> Estimate:
    # beside the reference's pass, both models read the strangers of every epoch
    return _ranked(config, parents, passes=config.epochs * (1 + 2 / 3) + 1 / 3, copies=1)


def _ranked(config: Any, parents: Parents, *, passes: float, copies: int = 0) -> Estimate:
    model = _first(parents, "model", "model")
    tokens = _first(parents, "feedback", "tokens")
    if model is None or tokens is None:
        return {}
    flops = model.flops(passes * tokens * (1 - config.heldout_fraction), length=CONVERSATION)
    at_once = config.microbatch_tokens
    return _trained(config, model, flops=flops, share=SHARE_RANKED, at_once=at_once, copies=copies)


def _onpolicy(config: Any, parents: Parents) -> Estimate:
    """PPO and GRPO: sample, pass through policy, reference and reward model, train `epochs`."""
    model = _first(parents, "model", "model")
    if model is None:
        return {}
    prompts = config.iterations * config.prompts_per_iteration
    gradings = 2 + math.ceil(config.iterations / config.eval_every)
    answer = min(ANSWER, config.max_new_tokens)
    sampled = answer * (prompts * config.answers_per_prompt + gradings * config.eval_prompts)
    seen = prompts * (PROMPT + config.answers_per_prompt * answer)
    flops = model.flops(seen * (config.epochs + 3 / 3), length=CONVERSATION)
    # an adapter is its own reference and its own last good weights: the reward model is left
    copies = 3 if config.adapter == "none" else 1
    at_once = config.microbatch_tokens
    found = _trained(config, model, flops=flops, share=SHARE_RANKED, at_once=at_once, copies=copies)
    found["seconds"] = _add(found["seconds"], _sampling_seconds(config, model, tokens=sampled))
    return found


def _ngram(config: Any, parents: Parents) -> Estimate:
    return _data(2 + 3e-7 * _sum(parents, "corpus", "bytes"), disk=5e4)


def _evaluate(config: Any, parents: Parents) -> Estimate:
    model = _first(parents, "model", "model")
    if model is None:
        return {}
    corpora = len(parents.get("corpora", ()))
    text = corpora * config.heldout.bytes_per_corpus / 3
    rows = 10 * config.items_per_cell + config.made_up_items if parents.get("dataset") else 0
    # beside a baseline or a reward model the answers pass once more through each
    passes = sum(bool(parents.get(role)) for role in ("baseline", "reward"))
    flops = model.flops(text / 3 + passes * rows * CONVERSATION, length=CONVERSATION)
    seconds = _add(
        _product_seconds(config, flops, share=SHARE_CHAT),
        _sampling_seconds(config, model, tokens=rows * min(ANSWER, config.max_new_tokens)),
    )
    return _with_model(model, seconds, disk=3e5)


_RATES: Mapping[str, Callable[[Any, Parents], Estimate]] = {
    "import": _import,
    "curate": _curate,
    "tokenizer": _tokenizer,
    "pretrain": _pretrain,
    "continue": _continue,
    "instruct": _instruct,
    "dataset": _files,
    "labels": _labels,
    "sft": _sft,
    "classify": _classify,
    "collect": _collect,
    "feedback": _files,
    "reward": _reward,
    "dpo": _with_reference,
    "ipo": _with_reference,
    "apo": _with_reference,
    "simpo": _without_reference,
    "orpo": _without_reference,
    "kto": _kto,
    "ppo": _onpolicy,
    "grpo": _onpolicy,
    "ngram": _ngram,
    "evaluate": _evaluate,
}


def _trained(
    config: Any, model: Model, *, flops: float, share: float, at_once: int, copies: int = 0
) -> Estimate:
    """at_once: tokens of a microbatch. copies: models that stand beside the one in training.

    An adapter saves a third of the products (those of gradients of frozen weights), and the disk.
    """
    rank = 0 if config.adapter == "none" else config.lora_r
    needed = memory_estimate(
        model.shape,
        model.vocab,
        tokens_per_microbatch=at_once,
        optimizer=config.optimizer,
        lora_r=rank,
    )
    weights = 4 * model.shape.num_parameters(model.vocab)
    disk = 4 * lora_parameters(model.shape, rank) if rank else weights
    seconds = _product_seconds(config, flops * (2 / 3 if rank else 1), share=share)
    found = _with_model(model, seconds, disk=disk + 1e5)
    return {**found, "memory_gb": HEAP_GB + (needed + copies * weights) / 1e9}


def _with_model(model: Model, seconds: float | None, *, disk: float) -> Estimate:
    return {
        "model": model,
        "seconds": _add(seconds, START_SECONDS),
        "memory_gb": HEAP_GB + 4 * model.shape.num_parameters(model.vocab) / 1e9,
        "disk_gb": disk / 1e9,
    }


def _data(seconds: float, *, disk: float) -> Estimate:
    return {"seconds": seconds, "memory_gb": DATA_GB, "disk_gb": disk / 1e9}


def _product_seconds(config: Any, flops: float, *, share: float) -> float | None:
    peak = peak_flops(config.precision, config.device)
    return None if peak is None else flops / (share * peak)


def _sampling_seconds(config: Any, model: Model, *, tokens: float) -> float | None:
    forward = model.flops(tokens, length=CONVERSATION) / 3
    products = _product_seconds(config, forward, share=SHARE_SAMPLING)
    return None if products is None else max(tokens / SAMPLED_PER_S, products)


@functools.cache
def peak_flops(precision: str, device: str) -> float | None:
    """Products of this machine, FLOP/s, measured once a process; None where nothing is known."""
    from rung.model.peak import measure_peak_flops  # torch, which every stage with a model needs
    from rung.model.precision import pick_device, pick_dtype

    try:
        where = pick_device(device)
        dtype = pick_dtype(precision, where)  # type: ignore[arg-type]
    except ResourceError:  # a plan may be made for another machine
        return None
    if where.type != "cpu":
        return None
    # the better of two moments: a shared machine may be busy in one
    return max(measure_peak_flops(dtype, where) for _ in range(2))


def _add(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


def _first(parents: Parents, role: str, key: str) -> Any:
    found = parents.get(role) or ({},)
    return found[0].get(key)


def _sum(parents: Parents, role: str, key: str) -> float:
    return sum(float(parent.get(key) or 0.0) for parent in parents.get(role, ()))
