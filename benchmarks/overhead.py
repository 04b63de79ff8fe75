"""What a server takes of its engine's speed: the same requests with and without HTTP between."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compare import spread
from light_client import Answer, ask_json
from load_requests import Body
from served import Server, environment

HERE = Path(__file__).resolve().parent
Json = dict[str, Any]


class EngineAlone:
    """engine_alone.py in a process of its own, which sleeps while the server is measured."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def answer(self, bodies: Sequence[Body] | None = None) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if bodies is not None:
            self._process.stdin.write(json.dumps(bodies) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the engine alone ended before it answered; its output is above")
        return line


@contextmanager
def engine_alone(model: Path, *, rows: int, threads: int) -> Iterator[EngineAlone]:
    process = subprocess.Popen(
        [sys.executable, str(HERE / "engine_alone.py"), str(model), str(rows)],
        env=environment(threads=threads),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        alone = EngineAlone(process)
        alone.answer()  # "ready"
        yield alone
    finally:
        process.kill()
        process.communicate()


async def ask_all(server: Server, bodies: Sequence[Body]) -> list[Answer]:
    asked = [ask_json(server.address, "/v1/completions", body) for body in bodies]
    return list(await asyncio.gather(*asked))


def through_server(server: Server, bodies: Sequence[Body]) -> Json:
    """As a line of engine_alone.py: what all clients got, from the first request to the last end.

    cpu: of the server. client_cpu: of this process, while the clock ran.
    """
    cpu, own = server.cpu_seconds(), time.process_time()
    answers = asyncio.run(ask_all(server, bodies))
    own = time.process_time() - own
    cpu = server.cpu_seconds() - cpu
    wrong = [answer.status for answer in answers if answer.status != 200]
    if wrong:
        raise SystemExit(f"the server answered {wrong}; its log is {server.log}")
    seconds = max(a.ended for a in answers) - min(a.began for a in answers)
    tokens = sum(answer.new_tokens for answer in answers)
    return {"tokens": tokens, "seconds": seconds, "cpu": cpu, "client_cpu": own}


def compare(
    server: Server, alone: EngineAlone, rounds: int, bodies: Callable[[int], list[Body]]
) -> Json:
    """Rounds of the engine alone and the server by turns, the same requests on both sides.

    Each round has other prompts: those of a round before would lie in the server's prefix cache.
    """
    found: list[tuple[Json, Json]] = []
    for number in range(rounds + 1):
        asked = bodies(number)
        engine = json.loads(alone.answer(asked))
        served = through_server(server, asked)
        if number:  # the first warms both up
            found.append((engine, served))
            print_round(number, engine, served)
    figures = overhead_figures(found, cores=os.cpu_count() or 1)
    ratio = figures["ratio"]
    print(
        f"server / engine alone: {ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f}); "
        "asked: at least 0.9"
    )
    return {**figures, "leaked": server.wait_until_idle()}


def print_round(number: int, engine: Json, served: Json) -> None:
    for name, side in (("engine alone", engine), ("server", served)):
        rate, cpu = side["tokens"] / side["seconds"], 1000 * side["cpu"] / side["tokens"]
        more = f"  clients {side['client_cpu']:.2f} s" if "client_cpu" in side else ""
        print(
            f"round {number}  {name:<13}{rate:>9,.1f} tokens/s  {side['tokens']:>6} tokens in "
            f"{side['seconds']:>6.2f} s  {cpu:>6.2f} ms of processor a token{more}",
            flush=True,
        )


def overhead_figures(rounds: Sequence[tuple[Json, Json]], *, cores: int) -> Json:
    """Ratios within each round (server over engine), rates, and where the processor time went."""
    rates = [[side["tokens"] / side["seconds"] for side in pair] for pair in rounds]
    costs = [[1000 * side["cpu"] / side["tokens"] for side in pair] for pair in rounds]
    shares = [served["client_cpu"] / (served["seconds"] * cores) for _, served in rounds]
    return {
        "ratio": spread([served / engine for engine, served in rates]),
        "rate": {
            "engine": spread([engine for engine, _ in rates]),
            "server": spread([served for _, served in rates]),
        },
        "cpu_ms_per_token": {
            "engine": spread([engine for engine, _ in costs]),
            "server": spread([served for _, served in costs]),
        },
        "client_share_of_cpu": spread(shares),
        "tokens": [[engine["tokens"], served["tokens"]] for engine, served in rounds],
    }
