"""Rung beside its peers: `python benchmarks/compare.py pretrain` (or sft, lora, dpo, grpo).

Each cell is a process of its own. The rounds are interleaved (ours, peer 1, peer 2, ours, ...),
because a shared machine drifts by more between minutes than most differences are worth: a ratio is
taken within a round, and the median of the rounds' ratios is the figure, min and max beside it.
The last line is JSON.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cells import CELLS, HERE, OURS, PEERS_PYTHON, UNITS, Cell, pick_cells
from workload import PLANS, ROW, SHAPES, Plan, Shape, build_workload

Result = dict[str, Any]
LIMIT = 900  # seconds of one cell; a quiet machine needs under 60
# first losses of the same random model on the same data differ by row order and rounding alone
LOSS_TOLERANCE = 0.05


def run_cell(cell: Cell, folder: Path, *, bf16: bool, threads: int) -> Result:
    """The result line of one worker; SystemExit with the end of its output when it fails."""
    command = cell.command(sys.executable, folder, bf16=bf16)
    done = subprocess.run(
        command,
        env=cell_environment(folder, threads=threads),
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        tail = "\n".join(done.stderr.strip().splitlines()[-15:])
        raise SystemExit(f"{cell.name} ended with exit code {done.returncode}:\n{tail}")
    result: Result = json.loads(lines[-1])
    return result


def cell_environment(folder: Path, *, threads: int) -> dict[str, str]:
    """The same for every cell: threads, no network, caches in the benchmark's own folder."""
    return {
        **os.environ,
        "PYTHONPATH": str(HERE.parent),
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "PYTHONWARNINGS": "ignore",
    }


def interleave(
    cells: Sequence[Cell], rounds: int, run: Callable[[Cell], Result]
) -> dict[str, list[Result]]:
    """Results by cell, `rounds` of them, every cell once before any cell again."""
    results: dict[str, list[Result]] = {cell.name: [] for cell in cells}
    for number in range(1, rounds + 1):
        for cell in cells:
            began = time.perf_counter()
            result = run(cell)
            results[cell.name].append(result)
            print(
                f"round {number} of {rounds}  {cell.name:<20} {result['rate']:>10,.2f} "
                f"{result['peak_rss_gb']:>6.2f} GB  {time.perf_counter() - began:>5.0f} s",
                flush=True,
            )
    return results


def spread(values: Sequence[float]) -> dict[str, float]:
    """min, median and max, to four digits."""
    figures = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {name: float(f"{value:.4g}") for name, value in figures.items()}


def summarise(results: Mapping[str, Sequence[Result]]) -> dict[str, Any]:
    """Ratios (ours over theirs, taken within each round) and the rates they come from."""
    ours = [result["rate"] for result in results[OURS]]
    ratios = {
        name: spread([a / b["rate"] for a, b in zip(ours, theirs, strict=True)])
        for name, theirs in results.items()
        if name != OURS
    }
    return {
        "ratio": {name: figures["median"] for name, figures in ratios.items()},
        "ratio_min": {name: figures["min"] for name, figures in ratios.items()},
        "ratio_max": {name: figures["max"] for name, figures in ratios.items()},
        "rate": {name: spread([r["rate"] for r in cell]) for name, cell in results.items()},
        "peak_rss_gb": {
            name: float(f"{max(r['peak_rss_gb'] for r in cell):.3g}")
            for name, cell in results.items()
        },
        "first_loss": {name: cell[0]["first_loss"] for name, cell in results.items()},
    }


def check_equal_work(kind: str, first_loss: Mapping[str, float | None]) -> None:
    """SystemExit when the sides' first losses differ: then they do not compute the same thing.

    GRPO's first loss is a mean of centred advantages: noise around 0, nothing to compare.
    """
    seen = {name: loss for name, loss in first_loss.items() if loss is not None}
    if kind == "grpo" or len(seen) < 2:
        return
    if max(seen.values()) - min(seen.values()) > LOSS_TOLERANCE:
        raise SystemExit(
            f"first losses differ by more than {LOSS_TOLERANCE}: {seen}; the sides do not do the "
            "same work, so their speeds cannot be compared"
        )


def gemm_share(results: Sequence[Result], shape: Shape) -> dict[str, Any]:
    """Model FLOP of the tokens trained, as a share of what matrix products alone reach here.

    6 x weights + the causal half of the attention products (Chowdhery et al. 2022, appendix B).
    The peak is the best that any round saw, so the share is not flattered by a busy moment.
    """
    flops = 6 * shape.num_matmul_weights + 6 * shape.layers * shape.width * ROW
    peak = max(result["gemm_peak_flops"] for result in results)
    shares = [result["rate"] * flops / peak for result in results]
    return {"gemm_peak_tflops": float(f"{peak / 1e12:.3g}"), "share_of_gemm_peak": spread(shares)}


def machine() -> dict[str, Any]:
    """What the figures were measured on, in words."""
    import torch

    flags = torch.cpu.get_capabilities()
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "bf16": sorted(name for name in flags if "bf16" in name and flags[name]),
        "torch": torch.__version__,
    }


def print_table(kind: str, summary: Mapping[str, Any]) -> None:
    """The same figures for people."""
    print(f"\n{UNITS[kind]:<28} {'min':>9} {'median':>9} {'max':>9}   ours / theirs")
    for name, rate in summary["rate"].items():
        ratio = ""
        if name != OURS:
            low, middle, high = (summary[k][name] for k in ("ratio_min", "ratio", "ratio_max"))
            ratio = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        figures = "".join(f" {rate[k]:>9,.1f}" for k in ("min", "median", "max"))
        print(f"{name:<28}{figures}   {ratio}")
    if "share_of_gemm_peak" in summary:
        share = summary["share_of_gemm_peak"]["median"]
        print(f"{OURS} uses {share:.0%} of {summary['gemm_peak_tflops']} TFLOP/s (matrix products)")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=sorted(CELLS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", choices=sorted(SHAPES), help="10m; lora: 135m")
    parser.add_argument("--samples", type=int, default=0, help="a step's; 0: the plan's")
    parser.add_argument("--steps", type=int, default=0, help="measured steps; 0: the plan's")
    parser.add_argument("--cells", default="", help="comma-separated; all that are not extra")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    sys.path.insert(0, str(HERE.parent))
    from rung.model.precision import has_bf16

    kind, plan = options.kind, PLANS[options.kind]
    size = options.size or ("135m" if kind == "lora" else "10m")
    shape = SHAPES[size]
    if not PEERS_PYTHON.exists():
        raise SystemExit(
            f"no peers' environment in {PEERS_PYTHON.parents[1]}; `make bench-{kind}` makes it"
        )
    plan = Plan(options.samples or plan.samples, plan.warmup, options.steps or plan.steps)
    bf16 = has_bf16()
    cells, left_out = pick_cells(kind, options.cells, bf16=bf16)
    for name, reason in left_out.items():
        print(f"{name} is left out: {reason}")
    with TemporaryDirectory(prefix="rung-bench-") as name:
        folder = Path(name)
        build_workload(folder, kind, shape, plan)
        results = interleave(
            cells,
            options.rounds,
            lambda cell: run_cell(cell, folder, bf16=bf16, threads=options.threads),
        )
    summary = summarise(results)
    check_equal_work(kind, summary["first_loss"])
    summary["ratio"] = {**summary["ratio"], **dict.fromkeys(left_out)}
    if kind == "pretrain":
        summary |= gemm_share(results[OURS], shape)
    print_table(kind, summary)
    facts = {"kind": kind, "size": size, "rounds": options.rounds, "unit": UNITS[kind]}
    precision = "bf16" if bf16 else "fp32"
    print(json.dumps({**summary, **facts, "precision": precision, "machine": machine()}))


if __name__ == "__main__":
    main()
