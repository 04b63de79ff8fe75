"""/runs: every stage at work or done, its curves live, and several on one chart."""

import json
from collections.abc import Sequence
from itertools import islice
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse

from rung.serve import show
from rung.serve.charted import MAX_OVERLAY, charts_of, labels_of, runs_spec
from rung.serve.headline import headline
from rung.serve.html import render_page
from rung.serve.page_route import PageRoute
from rung.serve.panels import AXES
from rung.serve.shelf import shelf_of
from rung.store.catalogue import View
from rung.store.curves import Line
from rung.store.lineage import flatten
from rung.store.runs import Run, read_runs, unfinished

PAGE = 100  # runs on one page
MAX_POINTS = 2000
_OTHERS = 50  # runs that the page of one offers to compare it with
_LIVE = {"Cache-Control": "no-store"}

router = APIRouter(prefix="/runs", route_class=PageRoute)
RunKeys = Annotated[list[str], Query()]
Axis = Literal["step", "tokens", "seconds"]


@router.get("", response_class=HTMLResponse)
def list_runs(
    request: Request, q: str = "", stage: str = "", page: Annotated[int, Query(ge=1)] = 1
) -> str:
    """The table of runs, newest first; q: part of a name, stage or id."""
    view = shelf_of(request).view()
    runs = read_runs(view)
    stages = sorted({run.stage for run in runs})
    words = q.lower().split()
    chosen = [
        run
        for run in runs
        if (not stage or run.stage == stage) and all(word in _searched(run) for word in words)
    ]
    return _render(
        "runs.html",
        active=_at_work(runs),
        runs=[(run, _line_of(view, run)) for run in chosen[(page - 1) * PAGE : page * PAGE]],
        total=len(chosen),
        page=page,
        pages=max(1, -(-len(chosen) // PAGE)),
        q=q,
        stage=stage,
        stages=stages,
        max_overlay=MAX_OVERLAY,
    )


@router.get("/active", response_class=HTMLResponse)
def active_runs(request: Request) -> HTMLResponse:
    """The part of the page that lives: asked for every few seconds."""
    runs = unfinished(shelf_of(request).view())
    html = _render("_active.html", active=_at_work(runs))
    return HTMLResponse(html, headers=_LIVE)


@router.get("/data")
def read_data(
    request: Request,
    run: RunKeys,
    metric: Annotated[list[str] | None, Query()] = None,
    axis: Axis = "step",
    points: Annotated[int, Query(ge=10, le=MAX_POINTS)] = 500,
) -> JSONResponse:
    """Curves since a cursor: run=KEY for all, run=KEY@CURSOR for what is new."""
    shelf = shelf_of(request)
    _check_overlay(run)
    found = []
    for one in run:
        key, _, cursor = one.partition("@")
        record = shelf.run(key)
        reading = shelf.curves(record).read(metric, axis=axis, cursor=cursor, points=points)
        found.append(
            {
                "key": record.short_key,
                "status": _status(record),
                "cursor": reading.cursor,
                "whole": reading.whole,
                "rows": reading.rows,
                "figures": len(shelf.curves(record).names()),
                "lines": {name: _line(line) for name, line in reading.lines.items()},
            }
        )
    return JSONResponse({"runs": found}, headers=_LIVE)


@router.get("/compare", response_class=HTMLResponse)
def compare_runs(request: Request, run: RunKeys) -> str:
    """Several runs on one chart each."""
    shelf = shelf_of(request)
    keys = list(dict.fromkeys(run))
    _check_overlay(keys)
    records = [shelf.run(key) for key in keys]
    return _render(
        "compare.html",
        runs=records,
        labels=labels_of(records),
        runs_spec=runs_spec(shelf, records),
        charts=charts_of(shelf, records),
        axes=AXES,
        differences=_differences(records),
    )


@router.get("/{key}", response_class=HTMLResponse)
def show_run(request: Request, key: str) -> str:
    """One run: how far it is, its curves, samples and what it said."""
    shelf = shelf_of(request)
    view, run = shelf.view(), shelf.run(key)
    others = (
        r
        for r in read_runs(view)
        if r.stage == run.stage and r.key != run.key and (r.active or r.has_metrics)
    )
    parents = [(role, id, view.title(id)) for role, id in run.parents.items()]
    return _render(
        "run.html",
        run=run,
        runs_spec=runs_spec(shelf, [run]),
        config=[(key, _said(value)) for key, value in flatten(run.config).items()],
        charts=charts_of(shelf, [run]),
        axes=AXES,
        others=list(islice(others, _OTHERS)),
        parents=parents,
    )


@router.get("/{key}/texts", response_class=HTMLResponse)
def show_texts(request: Request, key: str) -> HTMLResponse:
    """The part of a run's page that is text and lives: state, samples, what was said."""
    run = shelf_of(request).run(key)
    return HTMLResponse(_render("_live.html", run=run), headers=_LIVE)


def _render(template: str, **context: Any) -> str:
    return render_page(template, path="/runs", show=show, **context)


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _line_of(view: View, run: Run) -> str:
    artefact = view.artefacts.get(run.artefact or "")
    return "" if artefact is None else headline(artefact, view)


def _searched(run: Run) -> str:
    return f"{run.name} {run.stage} {run.kind} {run.key} {run.artefact} {run.state}".lower()


def _at_work(runs: Sequence[Run]) -> list[Run]:
    return sorted((run for run in runs if run.active), key=lambda run: (-run.started, run.key))


def _check_overlay(keys: Sequence[str]) -> None:
    if not 1 <= len(keys) <= MAX_OVERLAY:
        raise HTTPException(
            422, f"{len(keys)} runs were chosen; choose 1 to {MAX_OVERLAY}, a colour each"
        )


def _differences(runs: Sequence[Run]) -> list[tuple[str, list[Any]]]:
    """Config keys and parents in which the runs differ: (key, value of each run)."""
    flat = [
        flatten({**{f"input {r}": id[:12] for r, id in run.parents.items()}, **run.config})
        for run in runs
    ]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = [(key, [one.get(key) for one in flat]) for key in keys]
    return [(key, values) for key, values in rows if any(v != values[0] for v in values)]


def _status(run: Run) -> dict[str, Any]:
    """What a live page writes beside the curves."""
    return {
        "state": run.state,
        "active": run.active,
        "done": run.done,
        "total": run.total,
        "memory_gb": run.memory_gb,
    }


def _line(line: Line) -> dict[str, Any]:
    found = {"x": line.x, "y": line.y, "num": line.num}
    return found if not line.mean else {**found, "mean_x": line.mean_x, "mean": line.mean}
