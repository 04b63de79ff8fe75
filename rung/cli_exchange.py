"""Commands between Rung and other programs: import, export."""

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from rung.cli_output import JsonOption, SetOption, StoreOption, guarded, print_json


def register(app: typer.Typer) -> None:
    """Add the commands of this file to `app`."""
    app.command("import", epilog="Example: rung import path/to/SmolLM2-135M --as smollm")(
        guarded(import_model)
    )
    app.command("export", epilog="Example: rung export chat --to gguf --out chat-gguf --verify")(
        guarded(export_model)
    )


def import_model(
    source: Annotated[
        str,
        typer.Argument(help="A model folder, a .gguf or llama2.c file, or a hub id, owner/name."),
    ],
    name: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", help="Name of the model; default: from the source."),
    ] = None,
    set: SetOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and its cost; run nothing.")
    ] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Make any open model an artefact, to be trained like one of Rung's own."""
    from rung.cli_run import run_recipe
    from rung.recipe import single_stage
    from rung.stages import STAGES

    written = f"source={_quoted(source)}"
    recipe = single_stage(
        STAGES["import"],
        name=name or name_of(source),
        config=None,
        overrides=[written, *(set or [])],
        inputs={},
    )
    run_recipe(recipe, store=store, json=json, dry_run=dry_run, until=None, report=False)


def name_of(source: str) -> str:
    """A name out of the last part of a path or id: "models/Qwen2.5-0.5B.gguf" -> "Qwen2-5-0-5B"."""
    last = source.rstrip("/").replace("\\", "/").rpartition("/")[2]
    last = re.sub(r"\.(gguf|bin)$", "", last)
    return re.sub(r"[^A-Za-z0-9_-]+", "-", last).strip("-") or "imported"


def _quoted(text: str) -> str:
    """As a YAML text, whatever is in it."""
    return "'" + text.replace("'", "''") + "'"


def export_model(
    name: Annotated[str, typer.Argument(help="A model: name, entry name, or digits of its id.")],
    to: Annotated[
        str, typer.Option("--to", metavar="hf|gguf|adapter", help="What other programs read.")
    ] = "hf",
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="New folder; default: NAME-TO.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="f32, f16, bf16, of a GGUF also q8_0; default: hf as it is, gguf f16."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Of an adapter: hub id or path of its base, as users will load it."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Load it again with other readers and compare.")
    ] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Write a model for other programs, with a model card. Exit 2 when --verify fails."""
    from rung.exchange.export import export
    from rung.exchange.verify import verify_export
    from rung.progress import make_progress
    from rung.store.store import Store

    opened = Store(store)
    artefact = opened.checked(opened.open(name))
    folder = out or Path(f"{name.replace('/', '-')}-{to}")
    done = export(opened, artefact, to=to, out=folder, dtype=dtype, base=base, name=name)
    checks = []
    if verify:
        progress = make_progress(sys.stderr if json else sys.stdout)
        checks = verify_export(artefact.path, done, say=progress.say)
    passed = all(check.passed for check in checks)
    if json:
        rows = [check.row() for check in checks]
        files = sorted(path.name for path in done.folder.iterdir())
        print_json({"folder": str(done.folder), "to": to, "files": files, "checks": rows})
    else:
        for line in done.lines:
            typer.echo(line)
        for check in checks:
            typer.echo(check.sentence())
    if not passed:
        typer.echo(f"error: {done.folder} is not the same model; see the checks", err=True)
        raise typer.Exit(2)
