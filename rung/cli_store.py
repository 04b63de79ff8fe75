"""Commands on artefacts: ls, show, lineage, diff, verify, gc."""

from typing import Annotated, Any

import typer

from rung.cli_output import (
    JsonOption,
    StoreOption,
    guarded,
    print_json,
    print_table,
    show_size,
)

NameArgument = Annotated[
    str, typer.Argument(help="Name, entry name, or the first digits of an id.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this file to `app`."""
    for command, example in (
        (ls, "rung ls"),
        (show, "rung show quickstart/base"),
        (lineage, "rung lineage chat"),
        (diff, "rung diff base chat"),
        (verify, "rung verify"),
        (merge, "rung merge my-adapter --as my-model"),
        (gc, "rung gc --dry-run"),
    ):
        app.command(command.__name__, epilog=f"Example: {example}")(guarded(command))


def ls(store: StoreOption = None, json: JsonOption = False) -> None:
    """List the artefacts of the store."""
    from rung.progress import show_seconds
    from rung.store.store import Store

    opened = Store(store)
    names: dict[str, list[str]] = {}
    for name, id in opened.names().items():
        names.setdefault(id, []).append(name)
    rows: list[dict[str, Any]] = [
        {
            "names": names.get(artefact.id, []),
            "id": artefact.id,
            "kind": artefact.kind,
            "stage": artefact.stage,
            "bytes": sum(entry.size for entry in artefact.files.values()),
            "seconds": artefact.notes.get("seconds"),
            "time": artefact.notes.get("time", ""),
        }
        for artefact in sorted(opened.artefacts(), key=lambda a: str(a.notes.get("time", "")))
    ]
    if json:
        print_json(rows)
        return
    if not rows:
        typer.echo(f"no artefacts in {opened.root}; `rung run recipes/quickstart.yaml` makes some")
        return
    shown = [
        {
            "name": ", ".join(row["names"]) or "-",
            "kind": row["kind"],
            "id": row["id"][:12],
            "stage": row["stage"],
            "size": show_size(row["bytes"]),
            "cost": show_seconds(row["seconds"]) if row["seconds"] is not None else "?",
            "built": row["time"],
        }
        for row in rows
    ]
    print_table(shown, ["name", "kind", "id", "stage", "size", "cost", "built"])


def show(name: NameArgument, store: StoreOption = None, json: JsonOption = False) -> None:
    """Show the manifest of an artefact: config, parents, files, notes."""
    from rung.store.store import Store

    opened = Store(store)
    artefact = opened.open(name)
    known = {id: called for called, id in opened.names().items()}
    content: dict[str, Any] = {
        "id": artefact.id,
        "kind": artefact.kind,
        "stage": artefact.stage,
        "names": opened.names_of(artefact),
        "path": str(artefact.path),
        "config": dict(artefact.config),
        "parents": dict(artefact.parents),
        "files": {
            file: {"sha256": entry.sha256, "size": entry.size}
            for file, entry in artefact.files.items()
        },
        "notes": dict(artefact.notes),
    }
    if json:
        print_json(content)
        return
    for key in ("id", "kind", "stage", "path"):
        typer.echo(f"{key:8} {content[key]}")
    typer.echo(f"names    {', '.join(content['names']) or '-'}")
    for key in ("config", "notes"):
        typer.echo(f"{key}:")
        for line in _outline(content[key]):
            typer.echo(f"  {line}")
    typer.echo("parents:")
    for role, id in artefact.parents.items():
        typer.echo(f"  {role}: {id[:12]}  {known.get(id, '')}".rstrip())
    typer.echo("files:")
    for file, entry in artefact.files.items():
        typer.echo(f"  {file}  {show_size(entry.size)}  {entry.sha256[:12]}")


def _outline(value: Any) -> list[str]:
    """Nested mappings as indented lines; everything else on the line of its key."""
    lines = []
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            lines += [f"{key}:", *("  " + line for line in _outline(inner))]
        else:
            lines.append(f"{key}: {inner}")
    return lines


def lineage(name: NameArgument, store: StoreOption = None, json: JsonOption = False) -> None:
    """Draw where an artefact comes from."""
    from rung.store.lineage import ancestors, draw_tree
    from rung.store.store import Store

    opened = Store(store)
    artefact = opened.open(name)
    if not json:
        typer.echo(draw_tree(opened, artefact))
        return
    print_json(
        [
            {
                "id": node.id,
                "kind": node.kind,
                "stage": node.stage,
                "names": opened.names_of(node),
                "parents": dict(node.parents),
            }
            for node in ancestors(opened, artefact).values()
        ]
    )


def diff(
    left: NameArgument, right: NameArgument, store: StoreOption = None, json: JsonOption = False
) -> None:
    """Show how two artefacts differ: config keys, parents, files."""
    from rung.store.lineage import diff as differences
    from rung.store.store import Store

    opened = Store(store)
    found = differences(opened.open(left), opened.open(right))
    if json:
        print_json(found)
        return
    if not any(found.values()):
        typer.echo("no difference: the same artefact")
    for part, keys in found.items():
        for key, (one, two) in keys.items():
            if part in ("parents", "files"):
                one, two = (str(side)[:12] if side else "-" for side in (one, two))
            typer.echo(f"{part}.{key}: {one} -> {two}")


def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Default: all artefacts.")] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Hash every file again and say what changed since it was written. Exit 2 on damage."""
    from rung.errors import ArtefactError
    from rung.store.adapter import layers_below
    from rung.store.manifest import find_damage, read_manifest, way_out
    from rung.store.store import Store

    opened = Store(store)
    ids = [opened.resolve(name) for name in names] if names else opened.ids()
    damage: dict[str, list[str]] = {}
    for id in ids:
        folder = opened.root / "objects" / id
        try:
            damage[id] = find_damage(read_manifest(folder))
            for base in layers_below(folder)[1:]:  # an adapter is nothing without its base
                if base.name not in damage:
                    damage[base.name] = find_damage(read_manifest(base))
        except ArtefactError as error:
            damage[id] = [str(error)]
    bad = {id: found for id, found in damage.items() if found}
    if json:
        print_json({"verified": len(damage), "damaged": bad})
    else:
        for id, found in bad.items():
            for sentence in found:
                typer.echo(f"{id[:12]}: {sentence}")
        typer.echo(f"{len(damage) - len(bad)} of {len(damage)} artefacts are whole")
    if bad:
        typer.echo(f"error: {len(bad)} damaged; {way_out()}", err=True)
        raise typer.Exit(2)


def merge(
    name: NameArgument,
    new: Annotated[
        str | None, typer.Option("--as", metavar="NEW", help="Name of the result.")
    ] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Merge an adapter into its base: a whole model, compared with the adapter logit by logit."""
    from rung.cli_run import run_single
    from rung.stages import MERGE

    result = new or name.rpartition("/")[2] + "-merged"
    run_single(MERGE, name=result, inputs={"model": (name,)}, store=store, json=json)


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list.")] = False,
    damaged: Annotated[bool, typer.Option(help="Also artefacts whose bytes changed.")] = False,
    unfinished: Annotated[bool, typer.Option(help="Also the work of killed stages.")] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Remove artefacts that no name leads to."""
    from rung.store.store import Store
    from rung.store.sweep import sweep

    removed = sweep(Store(store), dry_run=dry_run, damaged=damaged, unfinished=unfinished)
    total = sum(item.size for item in removed)
    if json:
        items = [{"path": i.path, "reason": i.reason, "bytes": i.size} for i in removed]
        print_json({"dry_run": dry_run, "bytes": total, "removed": items})
        return
    for item in removed:
        typer.echo(f"{item.path.name[:12]}  {show_size(item.size):>9}  {item.reason}")
    verb = "would free" if dry_run else "freed"
    typer.echo(f"{len(removed)} folders, {verb} {show_size(total)}")
