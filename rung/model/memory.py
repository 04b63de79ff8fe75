"""Memory that training a shape takes, against the memory there is. No torch here."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from rung.errors import ResourceError
from rung.model.shape import SIZES, ModelConfig, Shape, resolve

Optimizer = Literal["muon", "adamw"]

_PROCESS = 500_000_000  # interpreter, torch and transformers, before the first tensor
LEAST_MICROBATCH = 512  # tokens: with fewer a step is mostly dispatch
_LOGIT_ROWS = 1024  # rows of logits that are held at once (rung/model/forward.py)


def memory_estimate(
    shape: Shape,
    vocab: int,
    *,
    tokens_per_microbatch: int,
    optimizer: Optimizer = "muon",
    lora_r: int = 0,
    base_bits: int = 16,
) -> int:
    """Peak bytes of training, an estimate to within a third: enough to refuse what cannot work.

    Weights and gradients in fp32 and a bf16 copy; one momentum for a matrix under Muon, two for
    what AdamW trains; per token and layer what autograd keeps of an eager bf16 decoder layer.
    lora_r: rank of an adapter on all linear layers, 0 without one. Then the base is frozen in
    `base_bits` beside float32 embeddings, and an input is kept once for all layers that read it.
    """
    num_parameters = shape.num_parameters(vocab)
    num_matrix = shape.num_body_parameters if optimizer == "muon" else 0
    weights = num_parameters * (4 + 4 + 2) + 4 * num_matrix + 8 * (num_parameters - num_matrix)
    per_token = 2 * (16 * shape.width + 5 * shape.ffn) + 4 * 6 * shape.width
    if lora_r:
        num_adapter = lora_parameters(shape, lora_r)
        weights = (
            base_bits * shape.num_body_parameters // 8 + 4 * vocab * shape.width + 16 * num_adapter
        )
        per_token = 2 * (9 * shape.width + 4 * shape.ffn) + 4 * 2 * shape.width
    activations = tokens_per_microbatch * (shape.layers * per_token + 8 * shape.width)
    logits = 3 * 4 * min(_LOGIT_ROWS, tokens_per_microbatch) * vocab + 4 * vocab * shape.width
    return _PROCESS + weights + activations + logits


def lora_parameters(shape: Shape, rank: int) -> int:
    """Of A and B beside q, k, v, o, gate, up and down of every layer."""
    keys = shape.width // shape.heads * shape.kv_heads
    attention = 2 * (shape.width + shape.width) + 2 * (shape.width + keys)
    return shape.layers * rank * (attention + 3 * (shape.width + shape.ffn))


def check_memory(
    shape: Shape,
    vocab: int,
    *,
    tokens_per_microbatch: int,
    optimizer: Optimizer = "muon",
    available: int | None = None,
) -> int:
    """The estimate in bytes; ResourceError with a size that fits when there is less memory.

    available: bytes; measured when None, and nothing is checked where it cannot be measured.
    """
    needed = memory_estimate(
        shape, vocab, tokens_per_microbatch=tokens_per_microbatch, optimizer=optimizer
    )
    limit = available_memory() if available is None else available
    if limit is None or needed <= limit:
        return needed
    ways = _smaller_microbatch(
        tokens_per_microbatch, lambda tokens: _fits(shape, vocab, tokens, optimizer, limit)
    )
    fitting = largest_size(
        vocab, available=limit, tokens_per_microbatch=tokens_per_microbatch, optimizer=optimizer
    )
    if fitting is not None:
        ways.append(f"size {fitting}")
    way_out = f"use {' or '.join(ways)}" if ways else "no size fits: free some memory"
    raise _too_large(shape, vocab, needed=needed, limit=limit, way_out=way_out)


def check_tuning_memory(
    shape: Shape,
    vocab: int,
    *,
    tokens_per_microbatch: int,
    optimizer: Optimizer,
    lora_r: int,
    base_bits: int,
    available: int | None = None,
) -> None:
    """ResourceError, with what would fit, where fine-tuning a given model takes more memory than
    there is. The arguments are those of `memory_estimate` and `check_memory`."""
    limit = available_memory() if available is None else available
    sizes = partial(memory_estimate, shape, vocab)
    now = partial(sizes, optimizer=optimizer, lora_r=lora_r, base_bits=base_bits)
    needed = now(tokens_per_microbatch=tokens_per_microbatch)
    if limit is None or needed <= limit:
        return
    ways = _smaller_microbatch(
        tokens_per_microbatch, lambda tokens: now(tokens_per_microbatch=tokens) <= limit
    )
    small = min(tokens_per_microbatch, LEAST_MICROBATCH)
    adapter = partial(sizes, tokens_per_microbatch=small, optimizer="adamw", lora_r=16)
    if not lora_r and adapter() <= limit:
        ways.append("adapter: lora")
    if base_bits > 4 and not ways and adapter(base_bits=4) <= limit:
        ways.append("adapter: lora with base_bits: 4")
    way_out = f"use {' or '.join(ways)}" if ways else "use a smaller model, or free some memory"
    raise _too_large(shape, vocab, needed=needed, limit=limit, way_out=way_out)


def _too_large(shape: Shape, vocab: int, *, needed: int, limit: int, way_out: str) -> ResourceError:
    return ResourceError(
        f"training {shape.num_parameters(vocab) / 1e6:.1f} M parameters needs about"
        f" {needed / 1e9:.1f} GB, {limit / 1e9:.1f} GB are available; {way_out}"
    )


def _smaller_microbatch(tokens: int, fits: Callable[[int], bool]) -> list[str]:
    """The largest half, quarter, ... of a microbatch that fits, as a way out; [] without one."""
    smaller = tokens // 2
    while smaller >= LEAST_MICROBATCH:
        if fits(smaller):
            return [f"microbatch_tokens: {smaller} (now {tokens})"]
        smaller //= 2
    return []


def largest_size(
    vocab: int,
    *,
    available: int,
    tokens_per_microbatch: int,
    optimizer: Optimizer = "muon",
) -> str | None:
    """The largest size of the dial that trains within `available` bytes; None when none does."""
    fitting = [
        size
        for size in SIZES
        if _fits(
            resolve(ModelConfig(size=size)), vocab, tokens_per_microbatch, optimizer, available
        )
    ]
    return fitting[-1] if fitting else None


def _fits(shape: Shape, vocab: int, tokens: int, optimizer: Optimizer, available: int) -> bool:
    estimate = memory_estimate(shape, vocab, tokens_per_microbatch=tokens, optimizer=optimizer)
    return estimate <= available


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes a new process may take: free memory, or what the control group leaves if less.

    None on a system that says neither (macOS, Windows). root: where /proc and /sys hang.
    """
    limits = [_free_memory(root / "proc/meminfo")]
    groups = root / "sys/fs/cgroup"
    for folder, limit, used in (
        (groups, "memory.max", "memory.current"),
        (groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        most, now = _read_number(folder / limit), _read_number(folder / used)
        if most is not None and now is not None:
            limits.append(max(0, most - now + _reclaimable(folder / "memory.stat")))
    known = [value for value in limits if value is not None]
    return min(known) if known else None


def _free_memory(meminfo: Path) -> int | None:
    if not meminfo.is_file():
        return None
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _reclaimable(stat: Path) -> int:
    """Bytes of cached files that count as used but are given back under pressure."""
    lines = stat.read_text().splitlines() if stat.is_file() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def used_memory(pid: int | None = None) -> int | None:
    """Resident bytes of a process, of this one by default; None where it has ended, and on a system
    that does not say."""
    try:
        pages = int(Path("/proc", str(pid or "self"), "statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _read_number(path: Path) -> int | None:
    """A number in a file of the control group; None for "max" and where there is no such file."""
    text = path.read_text().strip() if path.is_file() else ""
    return int(text) if text.isdigit() else None
