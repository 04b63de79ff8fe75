"""/lineage: the ladder as a picture, from text to the served model."""

from collections.abc import Sequence

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from rung.serve.html import render_page
from rung.serve.page_route import PageRoute
from rung.serve.picture import MAX_BOXES, family, make_picture
from rung.serve.shelf import served_models, shelf_of
from rung.store.catalogue import built_at
from rung.store.runs import Run, unfinished

router = APIRouter(route_class=PageRoute)


@router.get("/lineage", response_class=HTMLResponse)
def show_lineage(request: Request, of: str = "", evaluations: bool = False) -> str:
    """of: a recipe, or an artefact by name or id; the recipe that was named last without one."""
    shelf = shelf_of(request)
    view = shelf.view()
    recipes = view.recipes()
    if not of:
        of = recipes[0] if recipes else ""
    focus = ""
    if of in recipes:
        ids = {id for name, id in view.names.items() if name.startswith(f"{of}/")}
        chosen = family(view, sorted(ids), below=False)
    elif of:
        focus = shelf.artefact(of).id
        chosen = family(view, [focus], evaluations=evaluations)
    else:
        chosen = list(view.artefacts.values())
    if of in recipes or not of:
        chosen = [a for a in chosen if evaluations or a.kind != "evaluation"]
    runs = [run for run in unfinished(view) if _belongs(run, of, recipes)]
    chosen = sorted(chosen, key=lambda a: (a.id != focus, built_at(a)))
    return render_page(
        "lineage.html",
        path="/lineage",
        of=of,
        recipes=recipes,
        evaluations=evaluations,
        picture=make_picture(view, chosen, runs=runs, served=served_models(request), focus=focus),
        max_boxes=MAX_BOXES,
        focus=focus,
    )


def _belongs(run: Run, of: str, recipes: Sequence[str]) -> bool:
    """A run of another recipe is drawn with that one."""
    recipe = run.name.split("/")[0] if "/" in run.name else ""
    return recipe == of if of in recipes else True
