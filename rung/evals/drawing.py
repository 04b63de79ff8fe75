"""The lineage of a ladder as one SVG drawing: a box an artefact, a line a parent."""

from html import escape

from rung.evals.ladder import Ladder

BOX_W, BOX_H, GAP_X, GAP_Y, MARGIN = 148, 46, 56, 16, 8


def draw_lineage(ladder: Ladder) -> str:
    """SVG text; colours come from the page's style by the class of the kind."""
    depth = _depths(ladder)
    rows: dict[int, int] = {}
    place: dict[str, tuple[int, int]] = {}
    for id, level in depth.items():
        row = rows.get(level, 0)
        rows[level] = row + 1
        place[id] = (MARGIN + level * (BOX_W + GAP_X), MARGIN + row * (BOX_H + GAP_Y))
    width = 2 * MARGIN + (max(depth.values(), default=0) + 1) * (BOX_W + GAP_X) - GAP_X
    height = 2 * MARGIN + max(rows.values(), default=1) * (BOX_H + GAP_Y) - GAP_Y
    parts = [
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img"'
        ' aria-label="Which artefact was made from which">'
    ]
    for id in depth:
        for parent in dict.fromkeys(ladder.by_id[id].parents.values()):
            if parent in place:
                parts.append(_line(place[parent], place[id]))
    parts += [_box(ladder, id, place[id]) for id in depth]
    return "".join(parts) + "</svg>"


def _depths(ladder: Ladder) -> dict[str, int]:
    """Longest way from a root, in the order of the ladder. Evaluations are left out: there is one
    for every model, and they would hide the rest."""
    depth: dict[str, int] = {}
    for artefact in ladder.entries.values():
        if artefact.kind != "evaluation":
            above = [depth[p] for p in artefact.parents.values() if p in depth]
            depth[artefact.id] = max(above, default=-1) + 1
    return depth


def _line(start: tuple[int, int], end: tuple[int, int]) -> str:
    x0, y0 = start[0] + BOX_W, start[1] + BOX_H // 2
    x1, y1 = end[0], end[1] + BOX_H // 2
    bend = max(24, (x1 - x0) // 2)
    return f'<path class="edge" d="M{x0} {y0} C{x0 + bend} {y0} {x1 - bend} {y1} {x1} {y1}"/>'


def _box(ladder: Ladder, id: str, at: tuple[int, int]) -> str:
    artefact = ladder.by_id[id]
    x, y = at
    name = ladder.name(id)
    shown = name if len(name) <= 18 else name[:17] + "~"
    return (
        f'<g class="kind-{escape(artefact.kind)}"><title>{escape(name)}: {escape(artefact.kind)} '
        f"{escape(artefact.id[:12])} by {escape(artefact.stage)}</title>"
        f'<rect x="{x}" y="{y}" width="{BOX_W}" height="{BOX_H}" rx="6"/>'
        f'<text class="box-name" x="{x + 10}" y="{y + 20}">{escape(shown)}</text>'
        f'<text class="box-kind" x="{x + 10}" y="{y + 36}">{escape(artefact.stage)} &#183; '
        f"{escape(artefact.id[:8])}</text></g>"
    )
