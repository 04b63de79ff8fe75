"""Plotly figures as plain data: the page draws them in its own colours, light or dark."""

from collections.abc import Mapping, Sequence
from typing import Any

Chart = dict[str, Any]
"""{"title": str, "data": [...], "layout": {...}}; series carry `slot`, a colour of the page."""
Step = Mapping[str, Any]


def series(
    x: Sequence[Any],
    y: Sequence[Any],
    *,
    name: str,
    slot: int = 0,
    mode: str = "lines",
    **more: Any,
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "x": list(x),
        "y": list(y),
        "name": name,
        "mode": mode,
        "slot": slot,
    } | more


def chart(
    title: str, data: Sequence[dict[str, Any]], *, x: str = "", y: str = "", **layout: Any
) -> Chart:
    axes = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    return {"title": title, "data": list(data), "layout": axes | layout}


def column(steps: Sequence[Step], key: str) -> tuple[list[float], list[float]]:
    """(step, value) of the steps that logged `key`."""
    rows = [(s["step"], s[key]) for s in steps if isinstance(s.get(key), (int, float))]
    return [float(a) for a, _ in rows], [float(b) for _, b in rows]


def smooth(values: Sequence[float], *, span: int) -> list[float]:
    """Running mean over about `span` values, weighted to the latest."""
    out: list[float] = []
    level, weight = 0.0, 0.0
    keep = 1 - 1 / max(span, 1)
    for value in values:
        level, weight = keep * level + value, keep * weight + 1
        out.append(level / weight)
    return out


def loss_chart(steps: Sequence[Step], *, held_out: str = "heldout_loss") -> Chart | None:
    """Training loss as logged, smoothed, and on held-out text where the run looked."""
    x, y = column(steps, "loss")
    if len(x) < 2:
        return None
    data = [
        series(x, y, name="each step", slot=0, opacity=0.35),
        series(x, smooth(y, span=max(2, len(y) // 25)), name="smoothed", slot=0),
    ]
    held_x, held_y = column(steps, held_out)
    if held_x:
        data.append(series(held_x, held_y, name="held-out text", slot=1, mode="lines+markers"))
    return chart("Loss", data, x="step", y="loss")


def columns_chart(
    steps: Sequence[Step], wanted: Mapping[str, str], *, title: str, y: str = ""
) -> Chart | None:
    """Several logged figures over steps; wanted: key -> name."""
    data = []
    for slot, (key, name) in enumerate(wanted.items()):
        xs, ys = column(steps, key)
        if len(xs) > 1:
            mode = "lines+markers" if len(xs) < 30 else "lines"
            data.append(series(xs, ys, name=name, slot=slot, mode=mode))
    return chart(title, data, x="step", y=y) if data else None


def over_optimisation_chart(steps: Sequence[Step]) -> Chart | None:
    """Proxy reward and noise-free utility against KL: where they part, the proxy is gamed."""
    rows = [s for s in steps if all(isinstance(s.get(k), (int, float)) for k in _OVER_OPTIMISATION)]
    if len(rows) < 2:
        return None
    kl = [float(s["objective/kl"]) for s in rows]
    label = [f"rollout {s['step']}" for s in rows]
    data = [
        series(
            kl,
            [float(s["eval/scores"]) for s in rows],
            name="proxy: score of the reward model (left)",
            slot=0,
            mode="lines+markers",
            text=label,
        ),
        series(
            kl,
            [float(s["eval/utility"]) for s in rows],
            name="truth: noise-free utility (right)",
            slot=1,
            mode="lines+markers",
            text=label,
            yaxis="y2",
        ),
    ]
    second = {
        "title": {"text": "utility"},
        "overlaying": "y",
        "side": "right",
        "tickformat": ".2f",
        "showgrid": False,
    }
    return chart(
        "Reward and truth against distance",
        data,
        x="KL from the model before, nats per answer",
        y="score",
        yaxis2=second,
    )


_OVER_OPTIMISATION = ("objective/kl", "eval/scores", "eval/utility")


def calibration_chart(bins: Sequence[Mapping[str, float]]) -> Chart | None:
    """Confidence of the reward model against how often it was right; the diagonal is honest."""
    if not bins:
        return None
    data = [
        series([0.5, 1], [0.5, 1], name="calibrated", slot=7, line={"dash": "dot"}),
        series(
            [b["expected"] for b in bins],
            [b["observed"] for b in bins],
            name="held-out pairs",
            slot=0,
            mode="lines+markers",
            text=[f"{b['n']} pairs" for b in bins],
        ),
    ]
    return chart("Calibration", data, x="confidence", y="share ordered rightly")


def forgetting_chart(
    models: Sequence[str],
    made_from: Mapping[str, str],
    by_domain: Mapping[str, Mapping[str, float]],
) -> Chart | None:
    """Bits per byte of every domain after every stage, a line from each model to its children.

    made_from: model -> the model before. by_domain: name -> model -> bits per byte.
    """
    if len(models) < 2 or not by_domain:
        return None
    data = []
    for slot, (name, values) in enumerate(by_domain.items()):
        x: list[str | None] = []
        y: list[float | None] = []
        for model in (m for m in models if m in values):
            parent = made_from.get(model, "")
            if parent in values:
                x.append(parent)
                y.append(values[parent])
            x += [model, None]
            y += [values[model], None]
        data.append(series(x, y, name=name, slot=slot, mode="lines+markers"))
    drawn = chart("Bits per byte after each stage", data, y="bits per byte (lower is better)")
    drawn["layout"]["xaxis"] |= {"categoryorder": "array", "categoryarray": list(models)}
    return drawn


def bars_chart(
    title: str,
    groups: Sequence[str],
    by_name: Mapping[str, Sequence[Mapping[str, float] | None]],
    *,
    y: str,
) -> Chart:
    """Grouped bars with intervals; by_name: series -> an estimate for each group, or None."""
    data = []
    for slot, (name, estimates) in enumerate(by_name.items()):
        known = [e or {} for e in estimates]
        value = [e.get("value") for e in known]
        data.append(
            {
                "type": "bar",
                "name": name,
                "slot": slot,
                "x": list(groups),
                "y": value,
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "thickness": 1,
                    "width": 2,
                    "array": [e["high"] - e["value"] if e else None for e in known],
                    "arrayminus": [e["value"] - e["low"] if e else None for e in known],
                },
            }
        )
    return chart(title, data, y=y, barmode="group")
