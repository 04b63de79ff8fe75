"""Commands that build: run, and one per stage of the table."""

import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rung.cli_output import (
    JsonOption,
    SetOption,
    StoreOption,
    guarded,
    print_json,
    print_table,
    stop_on_terminate,
)
from rung.stages import STAGES, Stage

if TYPE_CHECKING:
    from rung.pipeline import Outcome
    from rung.plan import Row
    from rung.recipe import Recipe
    from rung.store.context import Progress
    from rung.store.store import Store


def register(app: typer.Typer) -> None:
    """Add `run` and the stages to `app`."""
    example = "rung run recipes/quickstart.yaml --set base.seed=1 --dry-run"
    app.command("run", epilog=f"Example: {example}")(guarded(run))
    for stage in STAGES.values():
        if stage.command == "import":  # has a command of its own, rung/cli_exchange.py
            continue
        command = guarded(make_stage_command(stage))
        app.command(
            stage.command,
            help=f"{stage.help} Gives a {stage.output}.",
            epilog=f"Example: {stage_example(stage)}",
            rich_help_panel="Stages",
        )(command)


def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as recipes/quickstart.yaml.")],
    set: SetOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and its cost; run nothing.")
    ] = False,
    until: Annotated[
        str | None, typer.Option(metavar="ENTRY", help="Only this entry and what it needs.")
    ] = None,
    report: Annotated[
        bool, typer.Option(help="Write the HTML report when the recipe measures something.")
    ] = True,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Run a recipe: only what changed; a killed run goes on where it was."""
    from rung.recipe import load_recipe

    loaded = load_recipe(recipe, overrides=set or [])
    run_recipe(loaded, store=store, json=json, dry_run=dry_run, until=until, report=report)


def make_stage_command(stage: Stage) -> Any:
    """A function with one option per role of `stage`, from which typer makes the command."""

    def command(**options: Any) -> None:
        from rung.recipe import single_stage

        inputs = {role.name: _as_tuple(options[f"role_{role.name}"]) for role in stage.roles()}
        recipe = single_stage(
            stage,
            name=options["name"],
            config=options["config"],
            overrides=options["set"] or [],
            inputs=inputs,
        )
        run_recipe(
            recipe,
            store=options["store"],
            json=options["json"],
            dry_run=options["dry_run"],
            until=None,
            report=False,
        )

    hints = _stage_options(stage)
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=hint, default=default)
        for name, (hint, default) in hints.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {name: hint for name, (hint, _) in hints.items()}
    return command


def run_single(
    stage: Stage,
    *,
    name: str,
    inputs: Mapping[str, tuple[str, ...]],
    store: Path | None,
    json: bool,
) -> None:
    """Run one stage without options of its own, for commands that are not in the table."""
    from rung.recipe import single_stage

    recipe = single_stage(stage, name=name, config=None, overrides=[], inputs=inputs)
    run_recipe(recipe, store=store, json=json, dry_run=False, until=None, report=False)


def _stage_options(stage: Stage) -> dict[str, tuple[Any, Any]]:
    """Parameter name -> (annotation, default) of a stage command."""
    options: dict[str, tuple[Any, Any]] = {}
    for role in stage.roles():
        kind = list[str] if role.many else str
        several = "; repeat for several" if role.many else ""
        option = typer.Option(f"--{role.name}", metavar="NAME", help=f"A {role.kind}{several}.")
        if role.required:
            options[f"role_{role.name}"] = (Annotated[kind, option], ...)
        else:
            options[f"role_{role.name}"] = (Annotated[kind | None, option], None)
    config = typer.Option("-c", "--config", help="YAML file with config keys.")
    name = typer.Option("--name", metavar="OUT", help="Name of the result.")
    dry_run = typer.Option("--dry-run", help="Print the plan and its cost; run nothing.")
    options |= {
        "name": (Annotated[str, name], stage.command),
        "config": (Annotated[Path | None, config], None),
        "set": (SetOption, None),
        "dry_run": (Annotated[bool, dry_run], False),
        "store": (StoreOption, None),
        "json": (JsonOption, False),
    }
    # A required option has no default: typer takes the empty default of inspect for that.
    return {
        key: (hint, inspect.Parameter.empty if default is ... else default)
        for key, (hint, default) in options.items()
    }


def stage_example(stage: Stage) -> str:
    """`rung pretrain --corpus my-corpus --tokenizer my-tokenizer --name my-model`"""
    inputs = "".join(f" --{r.name} my-{r.kind}" for r in stage.roles() if r.required)
    return f"rung {stage.command}{inputs} --name my-{stage.output}"


def _as_tuple(value: str | list[str] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def run_recipe(
    recipe: "Recipe",
    *,
    store: Path | None,
    json: bool,
    dry_run: bool,
    until: str | None,
    report: bool,
) -> None:
    from rung.pipeline import run as run_entries
    from rung.plan import make_plan
    from rung.progress import make_progress, show_seconds
    from rung.store.store import Store

    opened = Store(store)
    for note in recipe.notes:
        typer.echo(f"note: {note}", err=True)
    if dry_run:
        _print_plan(make_plan(recipe, opened, until=until), json=json)
        return
    stop_on_terminate()
    progress = make_progress(sys.stderr if json else sys.stdout)
    outcomes = run_entries(recipe, opened, progress=progress, until=until)
    page = _report(recipe, opened, outcomes, progress=progress, json=json) if report else None
    if json:
        entries = [
            {
                "entry": o.entry,
                "stage": o.artefact.stage,
                "id": o.artefact.id,
                "built": o.built,
                "seconds": o.seconds,
            }
            for o in outcomes
        ]
        print_json({"recipe": recipe.name, "entries": entries, "report": page})
        return
    built = sum(o.built for o in outcomes)
    cost = show_seconds(sum(o.seconds for o in outcomes))
    typer.echo(f"{built} built, {len(outcomes) - built} re-used; all together cost {cost}")
    if page:
        typer.echo(f"report: {page}")


def _report(
    recipe: "Recipe",
    store: "Store",
    outcomes: list["Outcome"],
    *,
    progress: "Progress",
    json: bool,
) -> Path | None:
    """Write the HTML report when there is something evaluated; its path."""
    if not any(o.artefact.kind in ("evaluation", "classifier") for o in outcomes):
        return None
    from rung.cli_talk import write_page

    names = {o.entry: o.artefact for o in outcomes}
    out = store.root / "reports" / f"{recipe.name or 'stage'}.html"
    write_page(names, store, out, show=None if json else progress)
    return out


def _print_plan(rows: list["Row"], *, json: bool) -> None:
    from dataclasses import asdict

    from rung.progress import show_seconds

    seconds = sum(row.seconds or 0.0 for row in rows)
    memory = max((row.memory_gb or 0.0 for row in rows), default=0.0)
    disk = sum(row.disk_gb or 0.0 for row in rows)
    unknown = [row.entry for row in rows if row.status != "re-used" and row.seconds is None]
    if json:
        total = {"seconds": seconds, "memory_gb": memory, "disk_gb": disk, "unknown": unknown}
        print_json({"entries": [asdict(row) for row in rows], "total": total})
        return
    shown = [
        {
            "entry": row.entry,
            "stage": row.stage,
            "status": row.status + (f" {row.id[:12]}" if row.id else ""),
            "time": _known(row.seconds, show_seconds),
            "memory": _known(row.memory_gb, lambda v: f"{v:.2f} GB"),
            "disk": _known(row.disk_gb, lambda v: f"{v:.3f} GB"),
            "estimate from": row.basis,
        }
        if row.status != "re-used"
        else {"entry": row.entry, "stage": row.stage, "status": f"re-used {(row.id or '')[:12]}"}
        for row in rows
    ]
    print_table(shown, ["entry", "stage", "status", "time", "memory", "disk", "estimate from"])
    rest = f"; not counted, as nothing is known yet: {', '.join(unknown)}" if unknown else ""
    typer.echo(
        f"total {show_seconds(seconds)}, at most {memory:.2f} GB of memory, "
        f"{disk:.3f} GB of disk{rest}"
    )
    if any("rates" in row.basis for row in rows):
        typer.echo(
            "rates: measured on 2 cores, training scaled to the matrix products of this machine; "
            "right within a factor of two at best"
        )


def _known(value: float | None, show: Any) -> str:
    return "?" if value is None else str(show(value))
