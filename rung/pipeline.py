"""Run a recipe: re-use what is built, build the rest, resume what was killed."""

import errno
import gc
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import rung
from rung.config import Config
from rung.errors import Interrupted, ResourceError, RungError
from rung.estimate import Estimates
from rung.meter import Meter
from rung.plan import check_disk, parent_ids, prepare, recipe_key
from rung.progress import show_seconds
from rung.recipe import Entry, Recipe
from rung.store.artefact import Artefact
from rung.store.context import Progress, StageContext
from rung.store.journal import Journal
from rung.store.store import Store
from rung.store.work import Work


@dataclass(frozen=True)
class Outcome:
    """What became of one entry. seconds: what it cost when it was built, kills included."""

    entry: str
    artefact: Artefact
    built: bool
    seconds: float


def run(
    recipe: Recipe, store: Store, *, progress: Progress, until: str | None = None
) -> list[Outcome]:
    """Go through the entries of `recipe` (or `until` and what it needs), parents first.

    Every config, reference and kind is checked before the first stage starts. A stage whose
    recipe key is known is re-used. Killed at any instant, the same call goes on from there.
    """
    configs = prepare(recipe, store, until=until)
    outcomes: dict[str, Outcome] = {}
    estimates = Estimates(recipe, store, configs)
    with store.shared():
        for name, config in configs.items():
            entry = recipe.entries[name]
            inputs = {
                role: [outcomes[r].artefact if r in outcomes else store.open(r) for r in some]
                for role, some in entry.inputs.items()
            }
            outcome = _reach(
                entry,
                config,
                inputs,
                called=recipe.artefact_name(name),
                estimates=estimates,
                store=store,
                progress=progress,
            )
            outcomes[name] = outcome
            store.set_name(recipe.artefact_name(name), outcome.artefact)
            progress.say(describe(outcome))
    return list(outcomes.values())


def describe(outcome: Outcome) -> str:
    """`base          pretrain   model 3f2a9c81d0b7  built in 61.2 s`"""
    how = "built in" if outcome.built else "re-used, cost"
    artefact = outcome.artefact
    return (
        f"{outcome.entry:<16} {artefact.stage:<10} {artefact.kind:<12} {artefact.short_id}  "
        f"{how} {show_seconds(outcome.seconds)}"
    )


def _reach(
    entry: Entry,
    config: Config,
    inputs: Mapping[str, Sequence[Artefact]],
    *,
    called: str,
    estimates: Estimates,
    store: Store,
    progress: Progress,
) -> Outcome:
    parents = parent_ids(entry, inputs)
    key = recipe_key(entry.stage, config, parents)
    built = False
    artefact = store.find(key)
    if artefact is None:
        for some in inputs.values():
            for one in some:
                store.checked(one)
        disk = estimates.of_entry(entry.name).get("disk_gb")
        what = f"{entry.name} ({entry.stage.command})"
        check_disk(store, needed_gb=disk, what=what)
        progress.say(f"{what} ...")
        work = store.begin(key)
        try:
            with _explain(entry, work=work):
                artefact = _build(
                    entry,
                    config,
                    inputs,
                    called=called,
                    parents=parents,
                    work=work,
                    store=store,
                    progress=progress,
                )
        finally:
            progress.finish()
            work.release()
        built = True
    seconds = float(artefact.notes.get("seconds", 0.0))
    return Outcome(entry=entry.name, artefact=artefact, built=built, seconds=seconds)


def _build(
    entry: Entry,
    config: Config,
    inputs: Mapping[str, Sequence[Artefact]],
    *,
    called: str,
    parents: Mapping[str, str],
    work: Work,
    store: Store,
    progress: Progress,
) -> Artefact:
    roles = {role.name: role for role in entry.stage.roles()}
    names = {"self": entry.name} | {
        (f"{role}.{index}" if roles[role].many else role): reference
        for role, references in entry.inputs.items()
        for index, reference in enumerate(references)
    }
    about = {
        "name": called,
        "stage": entry.stage.command,
        "kind": entry.stage.output,
        "config": config.model_dump(mode="json"),
        "parents": dict(parents),
    }
    with Journal(work.run, progress, about) as journal, Meter(work.run) as meter:
        context = StageContext(
            inputs={role: some[0] for role, some in inputs.items() if not roles[role].many},
            many={
                role.name: tuple(inputs.get(role.name, ())) for role in roles.values() if role.many
            },
            out=work.out,
            run=work.run,
            progress=journal,
            names=names,
        )
        notes = entry.stage.load().run(context, config) or {}
    artefact = store.commit(
        work,
        kind=entry.stage.output,
        stage=entry.stage.command,
        config=config.model_dump(mode="json"),
        parents=parents,
        notes={
            **notes,
            "seconds": round(meter.seconds, 3),
            "peak_rss_gb": round(meter.peak_rss_gb, 4),
            "entry": entry.name,
            **where_and_when(),
        },
    )
    if meter.seconds > 1:
        gc.collect()  # models of this stage hang in cycles; the next stage needs their memory
    return artefact


@contextmanager
def _explain(entry: Entry, *, work: Work) -> Iterator[None]:
    """Say which stage failed, what is kept, and how to go on."""
    what = f"{entry.name} ({entry.stage.command})"
    kept = "finished stages and checkpoints are kept"
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted in {what}; {kept}: run the same command again to go on"
        ) from None
    except Interrupted as error:
        error.add_note(f"in {what}; {kept}: run the same command again to go on")
        raise
    except RungError as error:
        error.add_note(f"in {what}; {kept}: mend the cause, then run the same command again")
        raise
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        raise ResourceError(
            f"no memory left in {what}; make it smaller (see its size, batch and max_ keys) "
            "or use a machine with more"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceError(
            f"disk full in {what}; {work.folder} is kept: free some space and run the same "
            "command again"
        ) from error


def _out_of_memory(error: BaseException) -> bool:
    """torch has no class of its own for a full main memory: it says so in a RuntimeError."""
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def where_and_when() -> dict[str, Any]:
    """Notes on machine and time; outside the hash."""
    return {
        "host": platform.node(),
        "machine": f"{os.cpu_count()} x {_processor()}",
        "python": platform.python_version(),
        "rung": getattr(rung, "__version__", "unknown"),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
