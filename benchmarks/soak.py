"""Many minutes of every kind of request, of clients that go away and of those that send rubbish."""

import asyncio
import contextlib
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from light_client import Answer, ask, post
from load_requests import Mix, Wanted, fault
from served import Server

ABORTS, MALFORMED = 0.10, 0.05  # shares of the requests
SHOWN = 5  # faults that are told as they come; all are counted
FLAT = 1.05  # most of the last quarter's memory over the second quarter's
RECENT = 200  # answers whose times say how long a client that leaves stays at most


@dataclass
class Record:
    """What happened so far. statuses: 0 where a connection ended without an answer. memory:
    (seconds since the beginning, MB)."""

    requests: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    aborted: int = 0
    malformed: int = 0
    faults: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)

    def add(self, wanted: Wanted, answer: Answer) -> None:
        self.requests += 1
        self.kinds[wanted.kind] += 1
        self.malformed += wanted.statuses != (200,)
        if answer.aborted:
            self.aborted += 1
            return
        self.statuses[answer.status] += 1
        if wanted.statuses == (200,):
            self.seconds.append(answer.ended - answer.began)
        if told := fault(wanted, answer):
            self.faults.append(told)
            if len(self.faults) <= SHOWN:
                print(f"  fault: {told}", flush=True)


def run(server: Server, *, minutes: float, clients: int, seed: int) -> dict[str, Any]:
    """Keep `clients` busy for so long; what came of it. sound: no fault but memory's growth."""
    record = Record()
    asyncio.run(_load(server, record, minutes=minutes, clients=clients, seed=seed))
    leaked = server.wait_until_idle() if server.alive else -1
    metrics = server.metrics() if server.alive else {}
    log = server.log.read_text().strip()
    found = {
        "requests": record.requests,
        "statuses": {str(status): num for status, num in sorted(record.statuses.items())},
        "kinds": dict(sorted(record.kinds.items())),
        "aborted": record.aborted,
        "malformed": record.malformed,
        "errors_5xx": sum(num for status, num in record.statuses.items() if status >= 500),
        "faults": len(record.faults),
        "first_faults": record.faults[:SHOWN],
        "leaked": leaked,
        "kv_tokens_left": metrics.get("rung_kv_tokens_used", -1.0),
        "health": server.get("/health")[0] if server.alive else 0,
        "log": log[-500:],
        "median_seconds": statistics.median(record.seconds) if record.seconds else None,
        **memory_figures(record.memory),
    }
    found["sound"] = (
        server.alive
        and not (found["errors_5xx"] or found["faults"] or leaked)
        and found["kv_tokens_left"] == 0
        and found["health"] == 200
    )
    print(
        f"{record.requests} requests, {found['errors_5xx']} times 5xx, {found['faults']} faults, "
        f"{leaked} slots leaked; memory {found['rss_mb_second_quarter']} MB in the second quarter, "
        f"{found['rss_mb_last_quarter']} MB in the last, {found['mb_per_minute']} MB a minute"
    )
    return found


async def _load(server: Server, record: Record, *, minutes: float, clients: int, seed: int) -> None:
    began = time.monotonic()
    until = began + 60 * minutes
    watching = asyncio.create_task(_watch(server, record, began, every=min(60.0, 10 * minutes)))
    try:
        work = [_client(server, record, seed * 1000 + i, until) for i in range(clients)]
        await asyncio.gather(*work)
    finally:
        watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching  # raises what went wrong there


async def _client(server: Server, record: Record, seed: int, until: float) -> None:
    """One request after the other, until the time is over."""
    mix, rng = Mix(seed), random.Random(seed)
    while time.monotonic() < until and server.alive:
        bad = rng.random() < MALFORMED
        wanted = mix.draw_malformed() if bad else mix.draw()
        leave = None
        if rng.random() < ABORTS:
            usual = statistics.median(record.seconds[-RECENT:] or [1.0])
            leave = rng.uniform(0, usual)
        request = post(wanted.path, wanted.body, server.address)
        answer = await ask(server.address, request, leave_after=leave)
        record.add(wanted, answer)
        if answer.status == 0 and not answer.aborted:
            await asyncio.sleep(0.2)  # the server is gone or goes


async def _watch(server: Server, record: Record, began: float, *, every: float) -> None:
    """Memory once a second; a line from time to time."""
    told = 0
    while True:
        await asyncio.sleep(1.0)
        if not server.alive:
            print("the server has ended", flush=True)
            return
        passed = time.monotonic() - began
        record.memory.append((passed, server.rss_mb()))
        if passed >= every * (told + 1):
            told += 1
            running, waiting = await asyncio.to_thread(server.at_work)
            statuses = "  ".join(f"{s}: {n}" for s, n in sorted(record.statuses.items()))
            print(
                f"{passed / 60:>5.1f} min  {record.requests:>6} requests  {statuses}  left early: "
                f"{record.aborted}  {record.memory[-1][1]:,.0f} MB  running {running}  waiting "
                f"{waiting}",
                flush=True,
            )


def memory_figures(samples: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Of (seconds, MB): medians of the second and the last quarter, and the slope of the second
    half in MB a minute, by least squares. flat: the last quarter has hardly more than the second.
    """
    if len(samples) < 8:
        raise SystemExit("memory was seen fewer than 8 times; give more --minutes")
    times, sizes = np.array(samples).T
    quarter = len(sizes) // 4
    second = float(np.median(sizes[quarter : 2 * quarter]))
    last = float(np.median(sizes[-quarter:]))
    half = len(sizes) // 2
    slope = float(np.polyfit(times[half:] / 60, sizes[half:], 1)[0])
    return {
        "rss_mb_second_quarter": round(second, 1),
        "rss_mb_last_quarter": round(last, 1),
        "rss_mb_most": round(float(sizes.max()), 1),
        "mb_per_minute": round(slope, 2),
        "flat": last <= FLAT * second,
    }
