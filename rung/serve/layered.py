"""A layered drawing of a graph without cycles: columns from left to right, few crossings.

After Sugiyama, Tagawa and Toda (1981): layers by the longest way from a root, a bend where a line
passes a layer, order within a layer by the mean of its neighbours, heights by least squares.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Edge = tuple[str, str]

_SWEEPS = 12
_BEND = 14.0  # height that a line takes where it passes a layer


@dataclass(frozen=True)
class Sizes:
    """Pixels of a box and of the space between boxes."""

    width: float = 190.0
    height: float = 58.0
    across: float = 64.0
    down: float = 16.0
    margin: float = 10.0


@dataclass(frozen=True)
class Drawing:
    """places: left upper corner of each box. paths: SVG path of each edge."""

    width: float
    height: float
    places: Mapping[str, tuple[float, float]]
    paths: Mapping[Edge, str]


def draw(nodes: Sequence[str], edges: Sequence[Edge], sizes: Sizes | None = None) -> Drawing:
    """Places for `nodes` (in any order) and paths for `edges` (from, to); ValueError on a cycle."""
    sizes = sizes or Sizes()
    known = set(nodes)
    edges = [edge for edge in dict.fromkeys(edges) if edge[0] in known and edge[1] in known]
    level = _levels(nodes, edges)
    layers, chains = _with_bends(nodes, edges, level)
    links = [pair for chain in chains.values() for pair in pairwise(chain)]
    layers = _ordered(layers, links)
    middle = _heights(layers, links, known, sizes)
    top = min((middle[n] - _tall(n, known, sizes) / 2 for n in middle), default=0.0)
    middle = {n: y - top + sizes.margin for n, y in middle.items()}
    column = sizes.width + sizes.across
    left = {n: sizes.margin + i * column for i, layer in enumerate(layers) for n in layer}
    bottom = max((middle[n] + _tall(n, known, sizes) / 2 for n in middle), default=0.0)
    return Drawing(
        width=2 * sizes.margin + max(0.0, len(layers) * column - sizes.across),
        height=bottom + sizes.margin,
        places={n: (left[n], middle[n] - sizes.height / 2) for n in nodes},
        paths={edge: _path(chain, left, middle, known, sizes) for edge, chain in chains.items()},
    )


def _levels(nodes: Sequence[str], edges: Sequence[Edge]) -> dict[str, int]:
    """The longest way from a root; a root itself stands just before the first that needs it."""
    above: dict[str, list[str]] = defaultdict(list)
    below: dict[str, list[str]] = defaultdict(list)
    for start, end in edges:
        above[end].append(start)
        below[start].append(end)
    waiting = {node: len(above[node]) for node in nodes}
    ready = [node for node in nodes if not waiting[node]]
    level: dict[str, int] = {}
    while ready:
        node = ready.pop(0)
        level[node] = max((level[p] + 1 for p in above[node]), default=0)
        for child in below[node]:
            waiting[child] -= 1
            if not waiting[child]:
                ready.append(child)
    if len(level) < len(nodes):
        raise ValueError(f"a cycle through {next(n for n in nodes if n not in level)}")
    for node in nodes:
        if not above[node] and below[node]:
            level[node] = min(level[child] for child in below[node]) - 1
    return level


def _with_bends(
    nodes: Sequence[str], edges: Sequence[Edge], level: Mapping[str, int]
) -> tuple[list[list[str]], dict[Edge, list[str]]]:
    """Nodes by layer, with a bend for each layer that an edge passes; each edge as its chain.

    Edges from one node share their bends: they leave it as one line.
    """
    layers: list[list[str]] = [[] for _ in range(max(level.values(), default=-1) + 1)]
    for node in nodes:
        layers[level[node]].append(node)
    bends: dict[tuple[str, int], str] = {}
    chains: dict[Edge, list[str]] = {}
    for start, end in edges:
        chain = [start]
        for passed in range(level[start] + 1, level[end]):
            if (start, passed) not in bends:
                bends[start, passed] = f"{start} passes {passed}"
                layers[passed].append(bends[start, passed])
            chain.append(bends[start, passed])
        chains[start, end] = [*chain, end]
    return layers, chains


def _ordered(layers: list[list[str]], links: Sequence[Edge]) -> list[list[str]]:
    """The order with the fewest crossings among some sweeps of the barycentre rule."""
    left, right = _neighbours(links)
    best, fewest = layers, _crossings(layers, right)
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        near = left if down else right
        layers = [list(layer) for layer in layers]
        place = {n: float(i) for layer in layers for i, n in enumerate(layer)}
        for layer in layers if down else reversed(layers):
            wanted = {
                n: sum(place[m] for m in near[n]) / len(near[n]) if near[n] else place[n]
                for n in layer
            }
            layer.sort(key=lambda n: wanted[n])
            place |= {n: float(i) for i, n in enumerate(layer)}
        crossings = _crossings(layers, right)
        if crossings < fewest:
            best, fewest = layers, crossings
    return best


def _crossings(layers: Sequence[Sequence[str]], right: Mapping[str, Sequence[str]]) -> int:
    count = 0
    for one, two in pairwise(layers):
        place = {n: i for i, n in enumerate(two)}
        ends = [place[m] for n in one for m in sorted(right[n], key=lambda m: place[m])]
        # inversions of the ends, by insertion into a sorted list
        seen: list[int] = []
        for end in ends:
            at = _upper(seen, end)
            count += len(seen) - at
            seen.insert(at, end)
    return count


def _upper(values: Sequence[int], value: int) -> int:
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if value < values[middle] else (middle + 1, high)
    return low


def _heights(
    layers: Sequence[Sequence[str]], links: Sequence[Edge], known: set[str], sizes: Sizes
) -> dict[str, float]:
    """The middle of each node: near its neighbours' mean, in order, without overlap."""
    left, right = _neighbours(links)
    middle: dict[str, float] = {}
    for layer in layers:
        middle |= dict(zip(layer, _spread([0.0] * len(layer), layer, known, sizes), strict=True))
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for layer in layers if down else reversed(layers):
            wanted = []
            for node in layer:
                near = (left[node] or right[node]) if down else (right[node] or left[node])
                wanted.append(sum(middle[n] for n in near) / len(near) if near else middle[node])
            middle |= dict(zip(layer, _spread(wanted, layer, known, sizes), strict=True))
    return middle


def _spread(
    wanted: Sequence[float], layer: Sequence[str], known: set[str], sizes: Sizes
) -> list[float]:
    """The heights nearest to `wanted` by least squares that keep order and distance.

    Less the distances that must lie before each, this is isotonic regression: neighbours that
    are out of order are pooled at their mean.
    """
    offsets = [0.0]
    for one, two in pairwise(layer):
        apart = (_tall(one, known, sizes) + _tall(two, known, sizes)) / 2 + sizes.down
        offsets.append(offsets[-1] + apart)
    pools: list[list[float]] = []  # [sum, count]
    for want, offset in zip(wanted, offsets, strict=False):
        pools.append([want - offset, 1.0])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            total, count = pools.pop()
            pools[-1][0] += total
            pools[-1][1] += count
    level = [total / count for total, count in pools for _ in range(int(count))]
    return [value + offset for value, offset in zip(level, offsets, strict=False)]


def _path(
    chain: Sequence[str],
    left: Mapping[str, float],
    middle: Mapping[str, float],
    known: set[str],
    sizes: Sizes,
) -> str:
    """From box to box; through a layer that it passes the line runs level."""
    parts = []
    for index, (one, two) in enumerate(pairwise(chain)):
        x0, y0, x1, y1 = left[one] + sizes.width, middle[one], left[two], middle[two]
        if index == 0:
            parts.append(f"M{x0:.1f} {y0:.1f}")
        elif one not in known:
            parts.append(f"L{x0:.1f} {y0:.1f}")
        bend = (x1 - x0) / 2
        parts.append(f"C{x0 + bend:.1f} {y0:.1f} {x1 - bend:.1f} {y1:.1f} {x1:.1f} {y1:.1f}")
    return " ".join(parts)


def _tall(node: str, known: set[str], sizes: Sizes) -> float:
    return sizes.height if node in known else _BEND


def _neighbours(links: Sequence[Edge]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Of each node those on the left and those on the right."""
    left: dict[str, list[str]] = defaultdict(list)
    right: dict[str, list[str]] = defaultdict(list)
    for one, two in dict.fromkeys(links):
        left[two].append(one)
        right[one].append(two)
    return left, right
