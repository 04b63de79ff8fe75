"""The clock that every side of a benchmark uses: rate over the steps after the warm-up.

Only the standard library, since the peers' environment imports it too.
"""

import json
import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Stopwatch:
    """Marks the end of each optimizer step; units are tokens, pairs or steps.

    warmup: steps before the measured ones (compilation, allocator, caches), not counted.
    first_loss: the mean loss of the first step, which shows that all sides do the same work.
    """

    warmup: int
    now: Callable[[], float] = time.perf_counter
    ends: list[float] = field(default_factory=list)
    units: list[float] = field(default_factory=list)
    first_loss: float | None = None
    pending: float = 0.0

    def count(self, units: float) -> None:
        """`units` of work in the step that is under way."""
        self.pending += units

    def add_loss(self, part: float) -> None:
        """A microbatch's part of the mean loss of the step; only the first step's are kept."""
        if not self.ends:
            self.first_loss = (self.first_loss or 0.0) + part

    def end_step(self) -> None:
        self.ends.append(self.now())
        self.units.append(self.pending)
        self.pending = 0.0

    def result(self) -> dict[str, float | int | None]:
        """Rate in units a second over the measured steps; needs at least one warm-up step."""
        measured = len(self.ends) - self.warmup
        if self.warmup < 1 or measured < 1:
            raise SystemExit(
                f"{len(self.ends)} steps leave none to measure after {self.warmup} of warm-up; "
                "run at least one warm-up step and one more"
            )
        seconds = self.ends[-1] - self.ends[self.warmup - 1]
        loss = self.first_loss
        return {
            "rate": sum(self.units[self.warmup :]) / seconds,
            "seconds": seconds,
            "units": sum(self.units[self.warmup :]),
            "steps": measured,
            "first_loss": None if loss is None or not math.isfinite(loss) else loss,
            "peak_rss_gb": peak_rss_gb(),
        }

    def print_result(self) -> None:
        """The last line of every worker: its result as JSON."""
        print(json.dumps(self.result()), flush=True)


def peak_rss_gb() -> float:
    """Most memory this process ever held, in GB (the kernel counts in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9
