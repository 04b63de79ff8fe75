"""How much of what the server can do is left when ten times as much is asked of it.

Goodput: tokens a second of requests that end with 200. The peak is the better of two loads that
keep every row busy: as many clients as rows, and twice as many, each with one request after the
other.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from light_client import Answer, ask_json
from served import Server

Make = Callable[[int], dict[str, Any]]
WARM = 0.25  # of the measured seconds, before them
MOST_OPEN = 400  # connections at once: beyond, neither side has files left for more


class Plan(NamedTuple):
    """rows of the server, measured seconds of a phase, how many times the peak is asked, and
    whether a client that is refused waits as it is told."""

    rows: int
    seconds: float
    times: float
    honour: bool


@dataclass
class Phase:
    """What came in between `begin` and `end` (perf_counter)."""

    begin: float
    end: float
    tokens: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    with_retry_after: int = 0
    asked: int = 0
    unasked: int = 0

    def add(self, answer: Answer) -> None:
        if not self.begin <= answer.ended <= self.end or answer.aborted:
            return
        self.statuses[answer.status] += 1
        self.with_retry_after += answer.status == 429 and "retry-after" in answer.headers
        if answer.status == 200:
            self.tokens += answer.new_tokens

    @property
    def seconds(self) -> float:
        return self.end - self.begin

    @property
    def goodput(self) -> float:
        return self.tokens / self.seconds

    @property
    def finished(self) -> float:
        """Requests that ended with 200, a second."""
        return self.statuses[200] / self.seconds


class Load:
    """Phases of load on one server. seed: no two requests are alike."""

    def __init__(self, server: Server, make: Make) -> None:
        self._server, self._make = server, make
        self._seed = 0

    async def _ask(self) -> Answer:
        self._seed += 1
        return await ask_json(self._server.address, "/v1/completions", self._make(self._seed))

    async def closed(self, clients: int, seconds: float, *, honour: bool = False) -> Phase:
        """Clients that send one request after the other."""
        phase = _phase(seconds)

        async def client() -> None:
            while True:
                phase.asked += 1
                answer = await self._ask()
                phase.add(answer)
                if answer.status == 429 and honour:
                    wait = float(answer.headers.get("retry-after-ms", 1000)) / 1000
                    await asyncio.sleep(wait)
                elif answer.status != 200:
                    await asyncio.sleep(0.05)

        await _end(phase, [asyncio.create_task(client()) for _ in range(clients)])
        return phase

    async def open(self, rate: float, seconds: float) -> Phase:
        """`rate` requests a second, whatever becomes of them: who is refused is gone, and the next
        one comes all the same."""
        phase = _phase(seconds)
        tasks: set[asyncio.Task[None]] = set()

        async def client() -> None:
            phase.add(await self._ask())

        began = time.perf_counter()
        num = 0
        while (now := time.perf_counter()) < phase.end:
            due = int((now - began) * rate) - num
            for _ in range(due):
                num += 1
                if len(tasks) >= MOST_OPEN:
                    phase.unasked += 1
                    continue
                phase.asked += 1
                task = asyncio.create_task(client())
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.sleep(min(0.01, 1 / rate))
        await _end(phase, list(tasks))
        return phase


def _phase(seconds: float) -> Phase:
    begin = time.perf_counter() + WARM * seconds
    return Phase(begin, begin + seconds)


async def _end(phase: Phase, tasks: list["asyncio.Task[None]"]) -> None:
    """Wait for the end of a phase; those who are still there go away."""
    await asyncio.sleep(max(0.0, phase.end - time.perf_counter()))
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


def run(server: Server, plan: Plan, make: Make) -> dict[str, Any]:
    """The peak, the overload, and what is left of the one in the other."""
    load = Load(server, make)
    peak, rate = 0.0, 0.0
    for clients in (plan.rows, 2 * plan.rows):
        phase, _ = _measured(server, load.closed(clients, plan.seconds))
        _print(f"{clients} clients", phase)
        if phase.goodput > peak:
            peak, rate = phase.goodput, phase.finished
    if not peak:
        raise SystemExit(f"no request ended with 200; the server's log is {server.log}")
    if plan.honour:
        clients = round(plan.times * plan.rows)
        asking = load.closed(clients, plan.seconds, honour=True)
        label = f"{clients} clients that wait as they are told"
    else:
        asking = load.open(plan.times * rate, plan.seconds)
        label = f"{plan.times * rate:.1f} requests a second, again and again"
    over, cpu = _measured(server, asking)
    _print(label, over)
    ratio = float(f"{over.goodput / peak:.4g}")
    leaked = server.wait_until_idle()
    print(f"goodput under overload / peak: {ratio:.3f}; asked: at least 0.9")
    refused = over.statuses[429]
    return {
        "ratio": ratio,
        "peak_tokens_s": round(peak, 1),
        "overload_tokens_s": round(over.goodput, 1),
        "clients": "honour Retry-After" if plan.honour else "come again at once",
        "asked_a_second": round(over.asked / (over.seconds * (1 + WARM)), 1),
        "not_asked": over.unasked,
        "statuses": {str(status): num for status, num in sorted(over.statuses.items())},
        "refused_with_retry_after": [over.with_retry_after, refused],
        "client_cpu_s": round(cpu, 2),
        "leaked": leaked,
        "sound": not leaked
        and over.with_retry_after == refused
        and not any(status >= 500 or status == 0 for status in over.statuses),
    }


def _measured(server: Server, asking: Any) -> tuple[Phase, float]:
    """A phase, and this process's own processor seconds in it."""
    cpu = time.process_time()
    phase = asyncio.run(asking)
    cpu = time.process_time() - cpu
    server.wait_until_idle()
    return phase, cpu


def _print(label: str, phase: Phase) -> None:
    statuses = ", ".join(f"{status}: {num}" for status, num in sorted(phase.statuses.items()))
    print(
        f"{label}: {phase.goodput:,.1f} tokens/s of requests that ended with 200 "
        f"({phase.finished:.2f} a second); {statuses}",
        flush=True,
    )
