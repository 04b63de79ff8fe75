"""Lineage: where an artefact comes from, and how two of them differ."""

from collections.abc import Mapping
from typing import Any

from rung.errors import ArtefactError
from rung.store.artefact import Artefact
from rung.store.store import Store


def ancestors(store: Store, artefact: Artefact) -> dict[str, Artefact]:
    """`artefact` and everything it was made from, by id, parents before children."""
    found: dict[str, Artefact] = {}

    def visit(node: Artefact) -> None:
        for id in node.parents.values():
            if id not in found:
                visit(store.get(id))
        found[node.id] = node

    visit(artefact)
    return found


def draw_tree(store: Store, artefact: Artefact) -> str:
    """The lineage as indented text, parents below their child; no branch is drawn twice.

    quickstart/chat  model 3f2a9c81d0b7  sft
    |- model: quickstart/base  model 9f...  pretrain
    `- dataset: ...
    """
    names: dict[str, list[str]] = {}
    for name, id in store.names().items():
        names.setdefault(id, []).append(name)
    lines: list[str] = []
    seen: set[str] = set()

    def visit(node: Artefact, *, label: str, indent: str) -> None:
        known = node.id in seen and bool(node.parents)
        called = ", ".join(names.get(node.id, [])) or "(no name)"
        line = f"{label}{called}  {node.kind} {node.short_id}  {node.stage}"
        lines.append(line + ("  (shown above)" if known else ""))
        if known:
            return
        seen.add(node.id)
        last = len(node.parents) - 1
        for index, (role, id) in enumerate(node.parents.items()):
            branch = indent + ("`- " if index == last else "|- ")
            deeper = indent + ("   " if index == last else "|  ")
            visit(store.get(id), label=f"{branch}{role}: ", indent=deeper)

    visit(artefact, label="", indent="")
    return "\n".join(lines)


def diff(left: Artefact, right: Artefact) -> dict[str, dict[str, tuple[Any, Any]]]:
    """What differs, as {"config" | "parents" | "files" | "artefact": {key: (left, right)}}.

    Nested config keys are written with dots; a side that lacks the key shows None.
    """
    parts = {
        "artefact": (
            {"kind": left.kind, "stage": left.stage},
            {"kind": right.kind, "stage": right.stage},
        ),
        "config": (flatten(left.config), flatten(right.config)),
        "parents": (dict(left.parents), dict(right.parents)),
        "files": (
            {name: entry.sha256 for name, entry in left.files.items()},
            {name: entry.sha256 for name, entry in right.files.items()},
        ),
    }
    return {
        part: {
            key: (one.get(key), two.get(key))
            for key in sorted(one.keys() | two.keys())
            if one.get(key) != two.get(key) or (key in one) != (key in two)
        }
        for part, (one, two) in parts.items()
    }


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys written with dots."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def recipe_artefacts(store: Store, reference: str | None) -> tuple[str, dict[str, Artefact]]:
    """A title and the artefacts by entry, parents first, of a recipe or of one artefact's lineage.

    reference: recipe name, or anything `Store.open` takes; None is the recipe named last.
    """
    names = store.names()
    recipes = {name.split("/")[0] for name in names if "/" in name}
    if reference is None:
        reference = _latest_recipe(store, recipes)
    prefix = f"{reference}/"
    if reference in recipes:
        chosen = {n.removeprefix(prefix): id for n, id in names.items() if n.startswith(prefix)}
        title = reference
    else:
        start = store.open(reference)
        title = reference.replace("/", "-")
        called = {id: name.split("/")[-1] for name, id in names.items()}
        chosen = {called.get(id, id[:12]): id for id in ancestors(store, start)}
    entries: dict[str, list[str]] = {}
    for entry, id in chosen.items():
        entries.setdefault(id, []).append(entry)
    ordered: dict[str, Artefact] = {}
    for id in _parents_first(store, list(entries)):
        ordered |= {entry: store.get(id) for entry in entries[id]}
    return title, ordered


def _parents_first(store: Store, ids: list[str]) -> list[str]:
    """`ids` so that parents come before children, otherwise by the time they were built."""
    by_time = sorted(ids, key=lambda id: str(store.get(id).notes.get("time", "")))
    order: dict[str, None] = {}
    for id in by_time:
        order |= dict.fromkeys(ancestors(store, store.get(id)))
    return [id for id in order if id in set(ids)]


def _latest_recipe(store: Store, recipes: set[str]) -> str:
    if not recipes:
        raise ArtefactError(
            f"no recipe has been run in {store.root}; `rung run recipes/quickstart.yaml` first"
        )
    return max(sorted(recipes), key=lambda recipe: store.named_at(f"{recipe}/"))
