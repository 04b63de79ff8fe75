"""The ladder as a picture: a box an artefact, a run or a served model; a line what was used."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rung.serve.headline import headline
from rung.serve.layered import Sizes, draw
from rung.serve.show import state
from rung.store.artefact import Artefact
from rung.store.catalogue import View
from rung.store.runs import Run

MAX_BOXES = 300
_FITS = 18  # characters of a title; the whole one is in the tooltip
SIZES = Sizes(width=164.0, height=60.0, across=38.0)


@dataclass(frozen=True)
class Box:
    """kind: names the colour. state: "done", "served", or that of a run. share: done, 0 to 1."""

    id: str
    href: str
    title: str
    under: str
    line: str
    kind: str
    state: str
    tooltip: str
    x: float = 0.0
    y: float = 0.0
    share: float | None = None
    focus: bool = False

    @property
    def short(self) -> str:
        return self.title if len(self.title) <= _FITS else self.title[: _FITS - 1] + "\u2026"


@dataclass(frozen=True)
class Wire:
    """An SVG path. used: by what, for the tooltip."""

    path: str
    start: str
    end: str


@dataclass(frozen=True)
class Picture:
    width: float
    height: float
    boxes: list[Box]
    wires: list[Wire]
    hidden: int = 0
    sizes: Sizes = field(default_factory=Sizes)

    @property
    def inputs(self) -> dict[str, list[str]]:
        """Box id -> titles of what it was made from; the picture as a list."""
        titles = {box.id: box.title for box in self.boxes}
        found: dict[str, list[str]] = {box.id: [] for box in self.boxes}
        for wire in self.wires:
            found[wire.end].append(titles[wire.start])
        return found


def make_picture(
    view: View,
    artefacts: Sequence[Artefact],
    *,
    runs: Sequence[Run] = (),
    served: Mapping[str, str] | None = None,
    focus: str = "",
) -> Picture:
    """Boxes of `artefacts`, of `runs` that lead on from them, and of models that are served.

    served: name -> artefact id. The first MAX_BOXES artefacts are drawn; `hidden` counts others.
    """
    shown = list(artefacts)[:MAX_BOXES]
    ids = {a.id for a in shown}
    boxes = {a.id: _of_artefact(a, view, focus=focus) for a in shown}
    edges = [(parent, a.id) for a in shown for parent in a.parents.values() if parent in ids]
    for run in runs:
        above = [parent for parent in run.parents.values() if parent in ids]
        if above or not run.parents:
            boxes[run.key] = _of_run(run)
            edges += [(parent, run.key) for parent in above]
    for name, id in (served or {}).items():
        if id in ids:
            box = _of_served(name)
            boxes[box.id] = box
            edges.append((id, box.id))
    drawing = draw(list(boxes), edges, SIZES)
    placed = [_at(box, drawing.places[id]) for id, box in boxes.items()]
    wires = [Wire(path, start, end) for (start, end), path in drawing.paths.items()]
    hidden = len(artefacts) - len(shown)
    return Picture(drawing.width, drawing.height, placed, wires, hidden, SIZES)


def family(
    view: View,
    ids: Collection[str],
    *,
    above: bool = True,
    below: bool = True,
    evaluations: bool = False,
) -> list[Artefact]:
    """`ids`, what they were made from, and what was made from them; nearest first.

    Evaluations are left out unless asked for: there is one for every model, and they hide the
    rest. Those in `ids` stay.
    """
    known = view.artefacts
    found: dict[str, Artefact] = {id: known[id] for id in ids if id in known}
    for up in [True] * above + [False] * below:
        waiting = list(ids)
        seen = set(waiting)
        while waiting:
            node = known.get(waiting.pop(0))
            if node is None:
                continue
            near = node.parents.values() if up else [a.id for _, a in view.children(node.id)]
            for id in near:
                skip = id not in known or (known[id].kind == "evaluation" and not evaluations)
                if id not in seen and not skip:
                    seen.add(id)
                    waiting.append(id)
                    found.setdefault(id, known[id])
    return list(found.values())


def _of_artefact(artefact: Artefact, view: View, *, focus: str) -> Box:
    title = view.title(artefact.id)
    line = headline(artefact, view)
    return Box(
        id=artefact.id,
        href=f"/artefacts/{artefact.id[:16]}",
        title=title.split("/")[-1],
        under=f"{artefact.stage} \u00b7 {artefact.id[:8]}",
        line=line,
        kind=artefact.kind,
        state="done",
        tooltip=f"{title}: {artefact.kind} made by {artefact.stage}"
        + (f", {line}" if line else ""),
        focus=artefact.id == focus,
    )


def _of_run(run: Run) -> Box:
    share = run.share
    line = state(run) + (f", {100 * share:.0f} %" if share is not None else "")
    return Box(
        id=run.key,
        href=f"/runs/{run.short_key}",
        title=run.name.split("/")[-1],
        under=f"{run.stage} \u00b7 not done",
        line=line,
        kind=run.kind,
        state=run.state,
        tooltip=f"{run.name}: {run.stage}, {line}",
        share=share,
    )


def _of_served(name: str) -> Box:
    return Box(
        id=f"served {name}",
        href="/chat",
        title=name,
        under="served here",
        line="talk to it",
        kind="served",
        state="served",
        tooltip=f"{name} is served by this process",
    )


def _at(box: Box, place: tuple[float, float]) -> Box:
    return replace(box, x=round(place[0], 1), y=round(place[1], 1))
