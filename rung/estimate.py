"""The estimated cost of each entry of a recipe, from the best source there is."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rung import rates
from rung.config import Config, parse_config
from rung.errors import RungError
from rung.recipe import Entry, Recipe
from rung.stages import STAGES, Stage
from rung.store.artefact import Artefact
from rung.store.store import Store

FIGURES = ("seconds", "memory_gb", "disk_gb")


class Estimates:
    """Estimates of entries and stored artefacts, each computed once, after what they are made of.

    configs: those of the entries, as `rung.plan.prepare` gives them. A built input is estimated
    like one that is not: from the config that it was built with.
    """

    def __init__(self, recipe: Recipe, store: Store, configs: Mapping[str, Config]) -> None:
        self.recipe, self.store, self.configs = recipe, store, configs
        self._stages = {**STAGES, **{e.stage.command: e.stage for e in recipe.entries.values()}}
        self._known: dict[str, rates.Estimate] = {}

    def of_entry(self, name: str) -> rates.Estimate:
        """What the stage itself or the table of rates says: figures and sizes, maybe none."""
        if name not in self._known:
            entry = self.recipe.entries[name]
            parents = {
                role: [
                    self.of_entry(r) if r in self.recipe.entries else self._stored(r)
                    for r in references
                ]
                for role, references in entry.inputs.items()
            }
            self._known[name] = _ask(entry.stage, self.configs[name], parents)
        return self._known[name]

    def of_artefact(self, artefact: Artefact) -> rates.Estimate:
        """What this artefact would have been estimated at; {} where its config is not read now."""
        if artefact.id not in self._known:
            self._known[artefact.id] = self._again(artefact)
        return self._known[artefact.id]

    def _again(self, artefact: Artefact) -> rates.Estimate:
        parents: dict[str, list[rates.Estimate]] = {}
        for role, id in artefact.parents.items():
            parents.setdefault(role.partition(".")[0], []).append(self._stored(id))
        try:
            stage = self._stages[artefact.stage]
            config = parse_config(stage.load().Config, artefact.config)
            return _ask(stage, config, parents)
        except (KeyError, OSError, RungError):  # of another version, or its files are gone
            return {}

    def _stored(self, reference: str) -> rates.Estimate:
        try:
            return self.of_artefact(self.store.open(reference))
        except RungError:
            return {}

    def cost(self, entry: Entry, *, past: Mapping[str, Artefact]) -> dict[str, Any]:
        """seconds, memory_gb, disk_gb as far as known, and in `basis` whose figures they are.

        Figure by figure: what the stage or the rates say, corrected by how that did on the last
        artefact of the stage here (`past`, by command); else that artefact's own figure; else the
        `measured` table of the recipe.
        """
        rated = self.of_entry(entry.name)
        measured = self.recipe.measured.get(entry.name, {})
        kind = "rates" if _own(entry.stage) is None else "stage"
        last = past.get(entry.stage.command)
        was = _spent(last) if last else {}
        rated_then = self.of_artefact(last) if last else {}
        found: dict[str, Any] = {}
        basis: list[str] = []
        for figure in FIGURES:
            now, then, spent = rated.get(figure), rated_then.get(figure), was.get(figure)
            if now is not None and then and spent:
                found[figure], source = now * spent / then, f"{kind} and last run"
            elif now is not None:
                found[figure], source = float(now), kind
            elif spent is not None:
                found[figure], source = float(spent), "last run"
            elif measured.get(figure) is not None:
                found[figure], source = float(measured[figure]), "recipe"
            else:
                continue
            basis.append(source)
        return {**found, "basis": ", ".join(dict.fromkeys(basis))}


def _ask(stage: Stage, config: Config, parents: rates.Parents) -> rates.Estimate:
    own = _own(stage)
    return own(config, parents) if own else rates.estimate(stage.command, config, parents)


def _own(stage: Stage) -> Callable[[Config, rates.Parents], rates.Estimate] | None:
    return getattr(stage.load(), "estimate", None)


def _spent(artefact: Artefact) -> dict[str, float | None]:
    notes = artefact.notes
    disk = sum(file.size for file in artefact.files.values()) / 1e9
    return {"seconds": notes.get("seconds"), "memory_gb": notes.get("peak_rss_gb"), "disk_gb": disk}


def last_of_each_stage(artefacts: Sequence[Artefact]) -> dict[str, Artefact]:
    """The latest artefact of each stage command."""
    ordered = sorted(artefacts, key=lambda a: str(a.notes.get("time", "")))
    return {artefact.stage: artefact for artefact in ordered}
