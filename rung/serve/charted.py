"""Charts of runs, and the tables beside them that are their legends."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rung.serve.panels import Panel, panels_of
from rung.serve.shelf import Shelf
from rung.store.curves import Line
from rung.store.runs import Run

MAX_OVERLAY = 8  # runs on one chart: as many as there are colours


@dataclass(frozen=True)
class Summary:
    """A row of the table beside a chart, which is its legend too.

    slot, dash: which colour and kind of line. first, last, low, high: of the whole curve.
    """

    label: str
    slot: int
    dash: int
    first: float
    last: float
    low: float
    high: float
    num: int


@dataclass(frozen=True)
class Charted:
    """A chart, what its table says, and what its script needs."""

    panel: Panel
    rows: list[Summary]

    @property
    def spec(self) -> dict[str, Any]:
        series = [{"name": s.name, "label": s.label} for s in self.panel.series]
        return {
            "title": self.panel.title,
            "unit": self.panel.unit,
            "fromZero": self.panel.from_zero,
            "series": series,
        }


def labels_of(runs: Sequence[Run]) -> list[str]:
    """Names, with the beginning of the key where two are equal."""
    names = [run.name for run in runs]
    twice = {name for name in names if names.count(name) > 1}
    return [f"{run.name} {run.key[:6]}" if run.name in twice else run.name for run in runs]


def runs_spec(shelf: Shelf, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What the script of the charts must know. figures: how many are logged so far."""
    return [
        {
            "key": run.short_key,
            "label": label,
            "active": run.active,
            "figures": len(shelf.curves(run).names()),
        }
        for run, label in zip(runs, labels_of(runs), strict=True)
    ]


def charts_of(shelf: Shelf, runs: Sequence[Run]) -> list[Charted]:
    """The charts of these runs and the tables beside them."""
    tables: dict[str, dict[str, Line]] = {}
    names: dict[str, None] = {}
    for run in runs:
        reading = shelf.curves(run).read(points=10)
        tables[run.key] = dict(reading.lines)
        names |= dict.fromkeys(shelf.curves(run).names())
    charts = []
    for panel in panels_of(list(names), growing=any(run.active for run in runs)):
        rows = []
        for place, (run, called) in enumerate(zip(runs, labels_of(runs), strict=True)):
            for index, series in enumerate(panel.series):
                line = tables[run.key].get(series.name)
                if line is None:
                    continue
                if len(runs) == 1:
                    rows.append(_summary(series.label, line, slot=index, dash=0))
                else:
                    label = f"{called}: {series.label}" if panel.series[1:] else called
                    rows.append(_summary(label, line, slot=place, dash=index))
        charts.append(Charted(panel, rows))
    return charts


def _summary(label: str, line: Line, *, slot: int, dash: int) -> Summary:
    y = line.y
    return Summary(label, slot % MAX_OVERLAY, dash % 3, y[0], y[-1], min(y), max(y), line.num)
