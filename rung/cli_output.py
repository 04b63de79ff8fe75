"""What every command shares: its options, its errors, its JSON."""

import functools
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from rung.errors import RungError

StoreOption = Annotated[
    Path | None,
    typer.Option("--store", envvar="RUNG_STORE", help="Folder of the artefacts; default ./.rung."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value for machines.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key; the value is YAML."),
]


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with what the user can fix printed as one sentence; exit codes 2 and 130."""

    @functools.wraps(command)
    def call(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except RungError as error:
            typer.echo(f"error: {error}", err=True)
            for note in getattr(error, "__notes__", []):
                typer.echo(f"  {note}", err=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            sys.stderr.close()  # `rung ls | head`: the reader has what it wanted
            raise typer.Exit(0) from None

    return call


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def print_table(rows: list[dict[str, Any]], columns: list[str]) -> None:
    """Columns as wide as their widest cell; nothing is cut."""
    cells = [columns] + [[str(row.get(name, "")) for name in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        typer.echo(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )


def show_size(size: float) -> str:
    """1.5 kB, 2.0 MB ..."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def stop_on_terminate() -> None:
    """SIGTERM ends a run the way Ctrl-C does: with what is kept, and how to go on."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
