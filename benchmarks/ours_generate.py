"""Rung's side of the benchmarks of generation; run by the product's Python."""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from stopwatch import Stopwatch
from workload import GROUP, Plan, read_plan, read_samples

from rung.engine.engine import Engine
from rung.engine.generate import Ready
from rung.engine.request import Request
from rung.engine.sampling import Sampling
from rung.model.load import load_model
from rung.model.precision import pick_dtype


def requests_of(kind: str, folder: Path) -> list[Request]:
    """One request a row, as long as the row says; no stop token, so every side makes as many."""
    return [
        Request(
            np.array(row["prompt"]),
            Sampling(max_new_tokens=len(row["answer"]), seed=number),
            num_samples=GROUP if kind == "group" else 1,
            key=number,
        )
        for number, row in enumerate(read_samples(folder))
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="fp32")
    parser.add_argument("--rows", type=int, default=128, help="samples at work at once")
    parser.add_argument("--static", action="store_true", help="no slot is filled again")
    options = parser.parse_args()
    plan = read_plan(options.folder)
    watch = Stopwatch(plan.warmup)
    model = load_model(options.folder / "model")
    dtype = pick_dtype(options.precision)
    requests = requests_of(options.kind, options.folder)

    def serve(batch: list[Request]) -> None:
        engine = Engine(model, max_rows=options.rows)
        for request in batch:
            engine.submit(request)
        with Ready(model, dtype):
            while engine.busy:
                watch.count(len(engine.step()))

    run(plan, watch, requests, serve, batch=options.rows if options.static else plan.samples)


def run(
    plan: Plan,
    watch: Stopwatch,
    requests: list[Request],
    serve: Callable[[list[Request]], None],
    *,
    batch: int,
) -> None:
    for step in range(plan.warmup + plan.steps):
        mine = requests[step * plan.samples :][: plan.samples]
        for at in range(0, len(mine), batch):
            serve(mine[at : at + batch])
        watch.end_step()
    watch.print_result()


if __name__ == "__main__":
    main()
