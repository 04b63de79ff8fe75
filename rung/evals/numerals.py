"""Numbers as people read them, on the page and in the terminal."""

from collections.abc import Mapping
from typing import Any

NOTHING = "-"


def number(value: float | None, *, digits: int = 3) -> str:
    """0.612; 1,234; - when there is none."""
    if value is None or value != value:
        return NOTHING
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}f}"


def amount(value: float | None, unit: str = "") -> str:
    """1.7 M tokens; 3.2e14 stays readable as 320 T."""
    if value is None:
        return NOTHING
    for size, letter in (
        (1e18, " E"),
        (1e15, " P"),
        (1e12, " T"),
        (1e9, " G"),
        (1e6, " M"),
        (1e3, " k"),
    ):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter} {unit}".rstrip()
    return f"{value:.3g} {unit}".rstrip()


def seconds(value: float) -> str:
    """47 s; 3 min 5 s; 2 h 4 min."""
    if value < 60:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def usd(value: float | None) -> str:
    """Two significant digits below a cent: a small model costs little, not nothing."""
    if value is None:
        return NOTHING
    if value >= 0.01:
        return f"${value:,.2f}"
    return f"${value:.1g}" if value >= 0.0001 else "< $0.0001"


def percent(value: float | None, *, digits: int = 0) -> str:
    return NOTHING if value is None else f"{100 * value:.{digits}f} %"


def estimate(value: Mapping[str, Any] | None, *, as_percent: bool = False) -> str:
    """0.61 [0.55, 0.66], or 61 % [55, 66]."""
    if not value:
        return NOTHING
    if as_percent:
        low, high = 100 * value["low"], 100 * value["high"]
        return f"{percent(value['value'])} [{low:.0f}, {high:.0f}]"
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def signed(value: Mapping[str, Any] | None) -> str:
    """+0.05 [+0.01, +0.09]; a star marks an interval that leaves out 0."""
    if not value:
        return NOTHING
    star = " *" if value["low"] > 0 or value["high"] < 0 else ""
    return f"{value['value']:+.2f} [{value['low']:+.2f}, {value['high']:+.2f}]{star}"
