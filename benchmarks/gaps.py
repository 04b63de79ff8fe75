"""Time between the tokens of running streams, alone and while a long prompt arrives."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from light_client import Address, Exchange, open_exchange, post, times_of_events
from load_requests import COMPLETIONS, completions

PROMPT, NEW = 64, 2000  # of a running stream; one that ends begins anew
SETTLED = 20  # events that every stream has had before the clock starts
ENDING = 3  # events that end a stream and hold no token: finish, usage, [DONE]


class Plan(NamedTuple):
    """streams that run, rounds, seconds of each round without a long prompt, its tokens."""

    streams: int
    rounds: int
    seconds: float
    long_prompt: int
    vocab: int

    def request(self, address: Address, *, prompt: int, new: int, seed: int) -> bytes:
        body = completions(1, vocab=self.vocab, prompt=prompt, new=new, seed=seed)[0]
        return post(COMPLETIONS, json.dumps(body).encode(), address)


@dataclass
class Windows:
    """quiet, arriving: (begin, end) of each window. streams: times of events, a list a request.
    first_token: seconds from a long prompt to its first text."""

    quiet: list[tuple[float, float]] = field(default_factory=list)
    arriving: list[tuple[float, float]] = field(default_factory=list)
    streams: list[list[float]] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)


class _Crowd:
    """Streams that run all the time."""

    def __init__(self, address: Address, plan: Plan) -> None:
        self._address, self._plan = address, plan
        self._seed = 0
        self.open: dict[int, Exchange] = {}
        self.ended: list[Exchange] = []

    async def keep_one(self, number: int) -> None:
        while True:
            self._seed += 1
            request = self._plan.request(self._address, prompt=PROMPT, new=NEW, seed=self._seed)
            exchange = await open_exchange(self._address, request)
            self.open[number] = exchange
            await exchange.over
            self.ended.append(exchange)
            if b" 200 " not in b"".join(exchange.parts)[:20]:
                raise SystemExit(f"a stream was refused: {b''.join(exchange.parts)[:400]!r}")

    @property
    def least(self) -> int:
        """Parts that the stream with the fewest has had."""
        return min(len(exchange.parts) for exchange in self.open.values())

    def times(self) -> list[list[float]]:
        """Times of tokens of every stream so far."""
        found = [times_of_events(e.parts, e.times)[:-ENDING] for e in self.ended]
        running = [e for e in self.open.values() if not e.over.done()]
        return found + [times_of_events(e.parts, e.times) for e in running]


async def watch(address: Address, plan: Plan) -> Windows:
    """Keep `streams` running; by turns let some seconds pass and send a long prompt."""
    crowd, windows = _Crowd(address, plan), Windows()
    tasks = [asyncio.create_task(crowd.keep_one(number)) for number in range(plan.streams)]
    try:
        while len(crowd.open) < plan.streams or crowd.least < SETTLED:
            await _pass(0.1, tasks)
        for number in range(plan.rounds):
            began = time.perf_counter()
            await _pass(plan.seconds, tasks)
            asked = time.perf_counter()
            windows.quiet.append((began, asked))
            request = plan.request(address, prompt=plan.long_prompt, new=8, seed=10_000 + number)
            exchange = await open_exchange(address, request)
            while not times_of_events(exchange.parts, exchange.times):
                await _pass(0.002, tasks)
                if exchange.over.done() and not exchange.parts:
                    raise SystemExit("the long prompt was not answered")
            first = times_of_events(exchange.parts, exchange.times)[0]
            windows.arriving.append((asked, first))
            windows.first_token.append(first - asked)
            await exchange.over
            print(
                f"round {number + 1} of {plan.rounds}  the long prompt's first token came after "
                f"{first - asked:.2f} s",
                flush=True,
            )
        windows.streams = crowd.times()
    finally:
        for task in tasks:
            task.cancel()
        for exchange in crowd.open.values():
            exchange.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
    return windows


async def _pass(seconds: float, tasks: Sequence["asyncio.Task[None]"]) -> None:
    """Let time pass; raises what a stream raised."""
    await asyncio.sleep(seconds)
    for task in tasks:
        if task.done():
            task.result()


def gaps_within(
    streams: Sequence[Sequence[float]], windows: Sequence[tuple[float, float]]
) -> np.ndarray:
    """Seconds between two tokens of one stream, of those gaps that any of the windows touches."""
    found: list[float] = []
    for times in streams:
        begins, ends = np.array(times[:-1]), np.array(times[1:])
        touched = np.zeros(len(begins), dtype=bool)
        for first, last in windows:
            touched |= (begins < last) & (ends > first)
        found += (ends - begins)[touched].tolist()
    return np.array(found)


def figures(windows: Windows) -> dict[str, Any]:
    """Of both kinds of window: how many gaps, their median, 99th percentile and longest, in
    milliseconds. ratio: that percentile while a long prompt arrives over the median without one;
    ratio_same: over the median of the same moments."""
    quiet = _describe(gaps_within(windows.streams, windows.quiet))
    arriving = _describe(gaps_within(windows.streams, windows.arriving))
    return {
        "ratio": _digits(arriving["p99_ms"] / quiet["median_ms"]),
        "ratio_same": _digits(arriving["p99_ms"] / arriving["median_ms"]),
        "ratio_quiet": _digits(quiet["p99_ms"] / quiet["median_ms"]),
        "quiet": quiet,
        "arriving": arriving,
        "first_token_s": [_digits(seconds) for seconds in windows.first_token],
    }


def _describe(gaps: np.ndarray) -> dict[str, float]:
    if not len(gaps):
        raise SystemExit("no gap was seen in a window; give more --seconds")
    middle, high, most = np.percentile(1000 * gaps, [50, 99, 100])
    return {
        "gaps": len(gaps),
        "median_ms": _digits(middle),
        "p99_ms": _digits(high),
        "max_ms": _digits(most),
    }


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def print_figures(found: dict[str, Any]) -> None:
    for name, label in (("quiet", "streams alone"), ("arriving", "while a long prompt arrives")):
        side = found[name]
        print(
            f"{label:<28} median {side['median_ms']:>8.1f} ms  p99 {side['p99_ms']:>8.1f} ms  "
            f"longest {side['max_ms']:>8.1f} ms  ({side['gaps']} gaps)"
        )
    print(
        f"p99 while it arrives / median: {found['ratio']:.2f} of the streams alone, "
        f"{found['ratio_same']:.2f} of the same moments; asked: at most 3"
    )
