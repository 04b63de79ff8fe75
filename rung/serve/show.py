"""Values as the pages write them."""

import math
import time
from functools import cache
from importlib.metadata import version
from typing import Any

from rung.evals.numerals import seconds as seconds
from rung.store.runs import Run

_SAY = {
    "running": "running",
    "saving": "saving",
    "silent": "no sign of life",
    "stopped": "stopped",
    "failed": "failed",
    "done": "done",
}


def number(value: Any) -> str:
    """1,234; 0.4321; 1.2e-05; text as it is; "-" for nothing."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{value:,.0f}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def size(num_bytes: float) -> str:
    """1.5 kB, 2.0 MB ..."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def ago(then: float, now: float | None = None) -> str:
    """just now; 5 min ago; 3 h ago; 2026-03-01."""
    if not then:
        return "-"
    gone = (now or time.time()) - then
    if gone < 60:
        return "just now"
    if gone < 3600:
        return f"{gone / 60:.0f} min ago"
    if gone < 86_400:
        return f"{gone / 3600:.0f} h ago"
    return time.strftime("%Y-%m-%d", time.gmtime(then))


def instant(then: float) -> str:
    """2026-03-01 14:03 UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(then)) if then else "-"


def state(run: Run) -> str:
    return _SAY[run.state]


def several(unit: str) -> str:
    """steps, whether a stage says step or steps."""
    return unit if not unit or unit.endswith("s") else unit + "s"


def left(run: Run) -> str:
    """About how long the task at hand still takes; "" when nobody can say."""
    return "" if run.seconds_left is None else f"about {seconds(run.seconds_left)} left"


@cache
def plotly_version() -> str:
    """For the address of its script: another version is another file to a browser."""
    return version("plotly")
