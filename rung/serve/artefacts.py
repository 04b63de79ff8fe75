"""/artefacts: one artefact, what it is, what it was made of and what it is good for."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from rung.evals.side_by_side import SampleRow, fixed_samples
from rung.serve import show
from rung.serve.headline import headline
from rung.serve.html import render_page
from rung.serve.page_route import PageRoute
from rung.serve.picture import Picture, family, make_picture
from rung.serve.reports import report_of
from rung.serve.shelf import Shelf, Verdict, served_models, shelf_of
from rung.store.artefact import Artefact
from rung.store.catalogue import View, built_at
from rung.store.manifest import find_damage
from rung.store.runs import Run, finished

PAGE = 100  # artefacts on one page of the list
_PREVIEW = 16_384  # bytes of a file that are shown

router = APIRouter(prefix="/artefacts", route_class=PageRoute)


@dataclass(frozen=True)
class Kin:
    """A parent or child. artefact is None where it is not in this store."""

    role: str
    id: str
    title: str
    artefact: Artefact | None
    line: str


@dataclass(frozen=True)
class Preview:
    """The beginning of a text file; cut: there is more."""

    name: str
    text: str
    cut: bool


@dataclass(frozen=True)
class ArtefactPage:
    """Everything the page of one artefact shows."""

    artefact: Artefact
    title: str
    names: list[str]
    line: str
    run: Run
    figures: list[tuple[str, Any]]
    counts: list[tuple[str, Any]]
    config: list[tuple[str, Any]]
    notes: list[tuple[str, Any]]
    parents: list[Kin]
    children: list[Kin]
    damage: list[str]
    verdict: Verdict | None
    samples: list[SampleRow]
    previews: list[Preview]
    picture: Picture
    recipes: list[str]

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.artefact.files.values())


@router.get("", response_class=HTMLResponse)
def list_artefacts(
    request: Request, q: str = "", kind: str = "", page: Annotated[int, Query(ge=1)] = 1
) -> str:
    """All artefacts, newest first."""
    view = shelf_of(request).view()
    known = view.artefacts.values()
    words = q.lower().split()
    chosen = [
        a
        for a in sorted(known, key=lambda a: (built_at(a), a.id), reverse=True)
        if (not kind or a.kind == kind)
        and all(w in f"{' '.join(view.names_of(a.id))} {a.stage} {a.id}".lower() for w in words)
    ]
    part = chosen[(page - 1) * PAGE : page * PAGE]
    rows = [(a, view.title(a.id), headline(a, view)) for a in part]
    return _render(
        "artefacts.html",
        rows=rows,
        q=q,
        kind=kind,
        kinds=sorted({a.kind for a in known}),
        total=len(chosen),
        page=page,
        pages=max(1, -(-len(chosen) // PAGE)),
        unreadable=view.unreadable,
    )


@router.get("/{reference:path}", response_class=HTMLResponse)
def show_artefact(request: Request, reference: str) -> str:
    """One artefact, by name, entry name or the first digits of its id."""
    shelf = shelf_of(request)
    page = build_artefact_page(shelf, shelf.artefact(reference), served=served_models(request))
    return _render("artefact.html", page=page)


@router.post("/{id}/verify")
def verify(request: Request, id: str) -> RedirectResponse:
    """Hash every file; the page then says what was found."""
    shelf = shelf_of(request)
    artefact = shelf.artefact(id)
    shelf.verify(artefact)
    return RedirectResponse(f"/artefacts/{artefact.id[:16]}#files", status_code=303)


def build_artefact_page(
    shelf: Shelf, artefact: Artefact, *, served: Mapping[str, str]
) -> ArtefactPage:
    view = shelf.view()
    names = view.names_of(artefact.id)
    near = family(view, [artefact.id], below=False)
    below = [child for _, child in view.children(artefact.id)]
    below = [a for a in below if a.kind != "evaluation"]
    drawn = {a.id: a for a in [artefact, *near, *below]}
    notes = artefact.notes
    return ArtefactPage(
        artefact=artefact,
        title=view.title(artefact.id),
        names=names,
        line=headline(artefact, view),
        run=finished(view, artefact),
        figures=_named(view, notes.get("figures")),
        counts=_rows(notes.get("counts")),
        config=_rows(artefact.config),
        notes=[(k, v) for k, v in _rows(notes) if not k.startswith(("figures.", "counts."))],
        parents=[_kin(view, role, id) for role, id in artefact.parents.items()],
        children=[_kin(view, role, a.id) for role, a in view.children(artefact.id)],
        damage=find_damage(artefact, full=False),
        verdict=shelf.verdict(artefact.id),
        samples=_samples(view, artefact),
        previews=_previews(artefact),
        picture=make_picture(view, list(drawn.values()), served=served, focus=artefact.id),
        recipes=sorted(
            {n.split("/")[0] for n in names if report_of(shelf, n.split("/")[0]) is not None}
        ),
    )


def _render(template: str, **context: Any) -> str:
    return render_page(template, path="/lineage", show=show, **context)


def _kin(view: View, role: str, id: str) -> Kin:
    artefact = view.artefacts.get(id)
    line = headline(artefact, view) if artefact is not None else "not in this store"
    return Kin(role, id, view.title(id), artefact, line)


def _named(view: View, figures: Any) -> list[tuple[str, Any]]:
    """Figures as rows; a figure of a corpus is written with the corpus's name, not its id."""
    found = []
    for key, value in _rows(figures):
        start, slash, end = key.partition("/")
        if start == "bpb" and slash and len(end) == 12:
            whole = [id for id in view.artefacts if id.startswith(end)]
            end = view.title(whole[0]) if len(whole) == 1 else end
            key = f"bits per byte of {end}"
        found.append((key, value))
    return found


def _rows(mapping: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as rows with dotted keys; lists as JSON, cut when long."""
    found: list[tuple[str, Any]] = []
    for key, value in (mapping or {}).items():
        if isinstance(value, Mapping) and value:
            found += _rows(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple, dict)):
            text = json.dumps(value, ensure_ascii=False)
            found.append((prefix + key, text if len(text) <= 400 else text[:400] + " ..."))
        else:
            found.append((prefix + key, value))
    return found


def _samples(view: View, artefact: Artefact) -> list[SampleRow]:
    """What a model wrote for its evaluations, or what an evaluation let its model write."""
    of_model = [a for role, a in view.children(artefact.id) if role == "model"]
    evaluations = [artefact] if artefact.kind == "evaluation" else of_model
    for one in evaluations:
        if one.stage != "evaluate" or "evaluation.json" not in one.files:
            continue
        try:
            result = json.loads(one.file("evaluation.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        title = view.title(one.parents.get("model", one.id))
        rows = [
            *fixed_samples([(title, result)], "answers"),
            *fixed_samples([(title, result)], "continuations"),
        ]
        if rows:
            return rows
    return []


def _previews(artefact: Artefact) -> list[Preview]:
    """The beginning of each text file: JSON and its lines; text models read, not weights."""
    found = []
    for name in artefact.files:
        if not name.endswith((".json", ".jsonl", ".jinja", ".txt", ".md")):
            continue
        try:
            with (artefact.path / name).open("rb") as file:
                head = file.read(_PREVIEW + 1)
        except OSError:
            continue
        text = head[:_PREVIEW].decode("utf-8", "replace")
        found.append(Preview(name, text, len(head) > _PREVIEW))
    return found
