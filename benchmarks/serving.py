"""`rung serve` under load: `python benchmarks/serving.py overhead` (or gap, soak, overload).

A random model (served.py) behind a real server process; the clients are this process
(light_client.py), whose own processor time is told, since it is taken from the server. The last
line is JSON. The server is ended with the benchmark, however that ends.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import gaps  # noqa: E402
import overhead  # noqa: E402
import overload  # noqa: E402
import soak  # noqa: E402
from compare import machine  # noqa: E402
from load_requests import Body, completions  # noqa: E402
from served import CONTEXT, import_model, serving  # noqa: E402
from workload import SHAPES  # noqa: E402

Json = dict[str, Any]
QUEUE = 256  # the server's default


def measure_overhead(folder: Path, model: Path, options: argparse.Namespace) -> Json:
    rows, threads, vocab = options.streams, options.threads, SHAPES[options.size].vocab

    def bodies(seed: int) -> list[Body]:
        return completions(rows, vocab=vocab, prompt=options.prompt, new=options.new, seed=seed)

    with (
        overhead.engine_alone(model, rows=rows, threads=threads) as alone,
        serving(folder, rows=rows, queue=QUEUE, threads=threads) as server,
    ):
        return overhead.compare(server, alone, options.rounds, bodies)


def measure_gap(folder: Path, model: Path, options: argparse.Namespace) -> Json:
    plan = gaps.Plan(
        streams=options.streams,
        rounds=options.rounds,
        seconds=options.seconds,
        long_prompt=options.prompt,
        vocab=SHAPES[options.size].vocab,
    )
    # rows to spare, so that the long prompt need not wait for a stream to end
    with serving(folder, rows=2 * plan.streams, queue=QUEUE, threads=options.threads) as server:
        figures = gaps.figures(asyncio.run(gaps.watch(server.address, plan)))
        leaked = server.wait_until_idle()
    gaps.print_figures(figures)
    return {**figures, "leaked": leaked}


def measure_soak(folder: Path, model: Path, options: argparse.Namespace) -> Json:
    with serving(folder, rows=options.streams, queue=QUEUE, threads=options.threads) as server:
        return soak.run(server, minutes=options.minutes, clients=options.clients, seed=options.seed)


def measure_overload(folder: Path, model: Path, options: argparse.Namespace) -> Json:
    rows, vocab = options.streams, SHAPES[options.size].vocab

    def make(seed: int) -> Body:
        return completions(1, vocab=vocab, prompt=options.prompt, new=options.new, seed=seed)[0]

    plan = overload.Plan(rows, options.seconds, options.times, options.honour)
    with serving(folder, rows=rows, queue=options.queue, threads=options.threads) as server:
        return overload.run(server, plan, make)


MEASURES: dict[str, Callable[[Path, Path, argparse.Namespace], Json]] = {
    "overhead": measure_overhead,
    "gap": measure_gap,
    "soak": measure_soak,
    "overload": measure_overload,
}


def parse_options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--size", choices=sorted(SHAPES), default="10m")
    shared.add_argument("--streams", type=int, default=16, help="streams, or rows of the server")
    shared.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    commands = parser.add_subparsers(dest="command", required=True)

    one = commands.add_parser("overhead", parents=[shared], help="the server over its engine")
    one.add_argument("--rounds", type=int, default=3)
    one.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    one.add_argument("--new", type=int, default=256, help="new tokens of a request")

    one = commands.add_parser("gap", parents=[shared], help="streams while a long prompt is read")
    one.add_argument("--rounds", type=int, default=5, help="long prompts")
    one.add_argument("--prompt", type=int, default=2000, help="tokens of the long prompt")
    one.add_argument("--seconds", type=float, default=3.0, help="without a long prompt, a round")

    one = commands.add_parser("soak", parents=[shared], help="mixed load for many minutes")
    one.add_argument("--minutes", type=float, default=20.0)
    one.add_argument("--clients", type=int, default=24)
    one.add_argument("--seed", type=int, default=0)

    one = commands.add_parser("overload", parents=[shared], help="ten times what it can do")
    one.add_argument("--seconds", type=float, default=60.0, help="of each measured phase")
    one.add_argument("--times", type=float, default=10.0, help="the load over the peak's")
    one.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    one.add_argument("--new", type=int, default=64, help="new tokens of a request")
    one.add_argument("--queue", type=int, default=64, help="the server's --max-queue")
    one.add_argument(
        "--honour", action="store_true", help="clients that are refused wait as Retry-After says"
    )
    return parser.parse_args(words)


def main() -> None:
    options = parse_options()
    # a kill of this process ends the server, too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    with TemporaryDirectory(prefix="rung-serving-") as name:
        folder = Path(name)
        model = import_model(folder, SHAPES[options.size])
        figures = MEASURES[options.command](folder, model, options)
    facts = {**vars(options), "context": CONTEXT, "seconds": round(time.monotonic() - began, 1)}
    print(json.dumps({**figures, "run": facts, "machine": machine()}))
    if figures.get("leaked") or not figures.get("sound", True):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
