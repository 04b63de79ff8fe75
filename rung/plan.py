"""The plan of a recipe: entries in order, checked, with what each will cost."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rung.config import Config, did_you_mean
from rung.errors import ArtefactError, ConfigError, ResourceError
from rung.estimate import Estimates, last_of_each_stage
from rung.recipe import Entry, Recipe, parse_entry
from rung.stages import Stage
from rung.store.artefact import Artefact, digest
from rung.store.store import Store

_LEAST_DISK_GB = 0.1


@dataclass(frozen=True)
class Row:
    """One line of the plan. Figures are None when nothing is known; `basis` says whose they are."""

    entry: str
    stage: str
    status: str
    id: str | None
    seconds: float | None = None
    memory_gb: float | None = None
    disk_gb: float | None = None
    basis: str = ""


def prepare(recipe: Recipe, store: Store, *, until: str | None = None) -> dict[str, Config]:
    """The entries to go through, in order, with their typed configs.

    until: only this entry and what it needs. Raises before anything runs: unknown references,
    wrong kinds, cycles, wrong config keys and values.
    """
    if until is not None and until not in recipe.entries:
        hint = did_you_mean(until, list(recipe.entries))
        raise ConfigError(f"--until {until!r}: no such entry{hint}")
    for entry in recipe.entries.values():
        _check_inputs(entry, recipe=recipe, store=store)
    names = _order(recipe, wanted=[until] if until else list(recipe.entries))
    return {name: parse_entry(recipe.entries[name], seed=recipe.seed) for name in names}


def _check_inputs(entry: Entry, *, recipe: Recipe, store: Store) -> None:
    for role in entry.stage.roles():
        for reference in entry.inputs.get(role.name, ()):
            where = entry.where(role.name)
            if reference in recipe.entries:
                kind = recipe.entries[reference].stage.output
            else:
                kind = _stored(reference, recipe=recipe, store=store, where=where).kind
            if kind != role.kind:
                raise ConfigError(
                    f"{where}: `{role.name}` of {entry.stage.command} takes a {role.kind}, "
                    f"but {reference!r} is a {kind}"
                )


def _stored(reference: str, *, recipe: Recipe, store: Store, where: str) -> Artefact:
    try:
        return store.open(reference)
    except ArtefactError as error:
        hint = did_you_mean(reference, list(recipe.entries))
        raise ConfigError(
            f"{where}: {reference!r} is no entry of this recipe{hint} {error}"
        ) from None


def _order(recipe: Recipe, *, wanted: Sequence[str]) -> list[str]:
    """`wanted` and all they need, parents first, otherwise in the order of the file."""
    done: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circle = " -> ".join([*path[path.index(name) :], name])
            raise ConfigError(f"{recipe.entries[name].where()}: entries need each other: {circle}")
        if name in done or name not in recipe.entries:
            return
        for references in recipe.entries[name].inputs.values():
            for reference in references:
                visit(reference, (*path, name))
        done.append(name)

    for name in wanted:
        visit(name, ())
    return done


def recipe_key(stage: Stage, config: Config, parents: Mapping[str, str]) -> str:
    """Answers "is this built already?" without building it.

    A stage that reads things outside the store defines `fingerprint(config)`: a JSON value that
    changes when they change (file sizes and times, versions of packages).
    """
    fingerprint = getattr(stage.load(), "fingerprint", None)
    return digest(
        {
            "kind": stage.output,
            "stage": stage.command,
            "version": stage.version,
            "config": config.model_dump(mode="json"),
            "parents": dict(parents),
            "outside": fingerprint(config) if fingerprint else None,
        }
    )


def parent_ids(entry: Entry, inputs: Mapping[str, Sequence[Artefact]]) -> dict[str, str]:
    """Role -> id as a manifest has it: "role", or "role.0", "role.1" where it takes several."""
    ids: dict[str, str] = {}
    for role in entry.stage.roles():
        for index, artefact in enumerate(inputs.get(role.name, ())):
            ids[f"{role.name}.{index}" if role.many else role.name] = artefact.id
    return ids


def make_plan(recipe: Recipe, store: Store, *, until: str | None = None) -> list[Row]:
    """What a run would do, entry by entry. Runs nothing; completes a commit cut short at most."""
    configs = prepare(recipe, store, until=until)
    estimates = Estimates(recipe, store, configs)
    past = last_of_each_stage(store.artefacts())
    built: dict[str, Artefact | None] = {}
    rows = []
    for name, config in configs.items():
        entry = recipe.entries[name]
        inputs: dict[str, list[Artefact | None]] = {
            role: [built[r] if r in recipe.entries else store.open(r) for r in references]
            for role, references in entry.inputs.items()
        }
        known = {r: [a for a in some if a is not None] for r, some in inputs.items()}
        built[name], resumes = None, False
        if all(len(known[role]) == len(inputs[role]) for role in inputs):
            key = recipe_key(entry.stage, config, parent_ids(entry, known))
            built[name] = store.find(key)
            resumes = (store.root / "work" / key / "run").is_dir()
        if (artefact := built[name]) is not None:
            rows.append(Row(name, entry.stage.command, "re-used", artefact.id, seconds=0.0))
            continue
        status = "resume" if resumes else "build"
        cost = estimates.cost(entry, past=past)
        rows.append(Row(name, entry.stage.command, status, None, **cost))
    return rows


def check_disk(store: Store, *, needed_gb: float | None, what: str) -> None:
    """Raises ResourceError before a stage starts that would not find room for what it writes."""
    needed = max(_LEAST_DISK_GB, needed_gb or 0.0)
    store.root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(store.root).free / 1e9
    if free < needed:
        raise ResourceError(
            f"{what} needs about {needed:.2f} GB of disk and {store.root} has {free:.2f} GB free; "
            "free some space (`rung gc` shows what no name leads to) or use --store ELSEWHERE"
        )
