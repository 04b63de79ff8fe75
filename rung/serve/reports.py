"""/reports: the HTML report of a recipe, fenced off; and plotly's script for the other pages."""

import gzip
from functools import cache
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from rung.errors import RungError
from rung.serve import show
from rung.serve.html import render_page
from rung.serve.page_route import PageRoute
from rung.serve.shelf import Shelf, shelf_of
from rung.store.lineage import recipe_artefacts

REPORT_CSP = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""The report carries its scripts inside itself, and texts of models in it. The sandbox gives it an
origin of its own: whatever ran there could neither read these pages nor ask this server anything.
"""
_YEAR = 31_536_000

router = APIRouter(route_class=PageRoute)


@router.get("/reports", response_class=HTMLResponse)
def list_reports(request: Request) -> str:
    """Recipes, and the reports that were made."""
    shelf = shelf_of(request)
    recipes = shelf.view().recipes()
    others = sorted(_written(shelf) - set(recipes))  # of single artefacts: `rung report NAME`
    rows = [(name, _made(shelf, name), _is_stale(shelf, name)) for name in [*recipes, *others]]
    return render_page("reports.html", path="/runs", rows=rows, recipes=recipes, show=show)


@router.get("/reports/{name}")
def show_report(request: Request, name: str) -> Response:
    """The report as `rung report` wrote it; 404 says how to make one."""
    path = report_of(shelf_of(request), name)
    if path is None:
        raise HTTPException(
            404, f"no report of {name!r:.80} yet: make it at /reports, or by `rung report`"
        )
    headers = {"Content-Security-Policy": REPORT_CSP, "Cache-Control": "no-cache"}
    return HTMLResponse(path.read_text(encoding="utf-8"), headers=headers)


@router.post("/reports/{recipe}")
def make_report(request: Request, recipe: str) -> RedirectResponse:
    """Write the report anew from what the recipe's names stand for now; some seconds."""
    from rung.evals.report import write_report  # plotly and numpy, for this alone

    shelf = shelf_of(request)
    store = shelf.store
    if recipe not in shelf.view().recipes():
        raise HTTPException(404, f"no recipe {recipe!r:.80} in this store")
    try:
        title, names = recipe_artefacts(store, recipe)
        metrics = {n: p for n, a in names.items() if (p := store.metrics(a)) is not None}
        write_report(names, metrics, _path(shelf, title))
    except RungError as error:
        raise HTTPException(409, str(error)) from None
    return RedirectResponse(f"/reports/{recipe}", status_code=303)


@router.get("/static/plotly.min.js")
def plotly(request: Request) -> Response:
    """plotly's own packaged script: named by its version, so browsers may keep it."""
    tag, plain, packed = _plotly()
    headers = {
        "ETag": tag,
        "Cache-Control": f"public, max-age={_YEAR}, immutable",
        "Vary": "Accept-Encoding",
    }
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(packed, headers=headers | {"Content-Encoding": "gzip"}, media_type=_JS)
    return Response(plain, headers=headers, media_type=_JS)


_JS = "text/javascript"


def report_of(shelf: Shelf, name: str) -> Path | None:
    """The file of the report of a recipe or artefact, where one was made."""
    # A name becomes a path only where the folder lists it: no address leads out of the folder.
    return _path(shelf, name) if name in _written(shelf) else None


def _written(shelf: Shelf) -> set[str]:
    return {path.stem for path in _path(shelf, "").parent.glob("*.html")}


def _path(shelf: Shelf, name: str) -> Path:
    return shelf.store.root / "reports" / f"{name}.html"


def _made(shelf: Shelf, name: str) -> float | None:
    path = report_of(shelf, name)
    return None if path is None else path.stat().st_mtime


def _is_stale(shelf: Shelf, recipe: str) -> bool:
    """Whether a name of the recipe was set after its report was made."""
    made = _made(shelf, recipe)
    return made is not None and made < shelf.store.named_at(f"{recipe}/")


@cache
def _plotly() -> tuple[str, bytes, bytes]:
    """(ETag, script, script packed); a third of a second, once."""
    import plotly as package  # lazy: only pages with charts ask for it
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs().encode("utf-8")
    return f'"plotly-{package.__version__}"', script, gzip.compress(script, 6, mtime=0)
