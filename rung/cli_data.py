"""Commands on data files: data show."""

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rung.cli_output import JsonOption, StoreOption, guarded, print_json

if TYPE_CHECKING:
    from rung.survey import Survey
    from rung.tasks.lengths import Piece
    from rung.tokens.tokenizer import Tokenizer

_EXAMPLE = "rung data show my/chats.jsonl --model quickstart/chat"
_MOST_SHOWN = 12  # labels, keys and files that are listed


def register(app: typer.Typer) -> None:
    """Add the group of this file to `app`."""
    data = typer.Typer(
        name="data",
        help="Look at data files before training on them.",
        epilog=f"Example: {_EXAMPLE}",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    data.callback()(_group)
    data.command("show", epilog=f"Example: {_EXAMPLE}")(guarded(show))
    app.add_typer(data)


def _group() -> None:
    """Look at data files before training on them. All commands take --json."""


def show(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE|FOLDER|HUB-ID...",
            help=".jsonl, .json, .csv, .tsv, .parquet (.gz), folders, or owner/name on the hub.",
        ),
    ],
    tokenizer: Annotated[
        str | None, typer.Option(metavar="NAME", help="A tokenizer or model: count its tokens.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="A model: its tokens, and its context.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="Longest sample in tokens; default: the model's.")
    ] = None,
    overlong: Annotated[
        Literal["drop", "shorten"], typer.Option(help="What becomes of a longer conversation.")
    ] = "drop",
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="OURS=THEIRS", help="Read a key as another; repeat."),
    ] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Shapes, counts, lengths, the share that is trained on, what is dropped, and an example."""
    from rung.errors import ConfigError
    from rung.survey import survey

    if context and not (tokenizer or model):
        raise ConfigError(
            f"--context {context} is in tokens: give --model or --tokenizer to count them with"
        )
    loaded, length = _tokenizer(tokenizer or model, store=store)
    found = survey(
        files,
        tokenizer=loaded,
        context=context or (length if model else None),
        overlong=overlong,
        columns=_columns(columns or []),
    )
    if json:
        print_json(found.to_json())
    else:
        _print(found)


def _columns(given: list[str]) -> dict[str, str]:
    from rung.errors import ConfigError

    for pair in given:
        if not all(pair.partition("=")):
            raise ConfigError(f"--column {pair}: write it as ours=theirs, such as output=answer")
    return {ours: theirs for ours, _, theirs in (pair.partition("=") for pair in given)}


def _tokenizer(name: str | None, *, store: Path | None) -> tuple["Tokenizer | None", int | None]:
    """(the tokenizer of an artefact, the context of the model in tokens where it is one)."""
    if name is None:
        return None, None
    import json as json_module

    from rung.store.store import Store
    from rung.tokens.tokenizer import load_tokenizer

    opened = Store(store)
    artefact = opened.checked(opened.open(name))
    length = None
    if "config.json" in artefact.files:
        settings = json_module.loads(artefact.file("config.json").read_text(encoding="utf-8"))
        length = settings.get("max_position_embeddings")
    return load_tokenizer(artefact.path), length


def _print(found: "Survey") -> None:
    counts = found.counts
    for shape, rows in counts.shapes.most_common():
        typer.echo(f"shape      {shape}: {_num(rows, 'row')}, the first at {counts.first[shape]}")
    if len(found.kinds) > 1:
        typer.echo(f"mixed      {_listed(found.kinds)}: give each stage files of its own")
    typer.echo(f"for        {', '.join(found.stages())}")
    typer.echo(f"rows       {counts.rows:,} in {_num(found.files, 'file')}; {_kept(found)}")
    for lengths in found.lengths:
        said = lengths.describe().removeprefix(f"{lengths.unit}: ")
        typer.echo(f"{lengths.unit:10} {said}")
    if counts.labels:
        typer.echo(f"labels     {_listed(counts.labels)}")
    if counts.unused:
        typer.echo(f"not used   {_listed(counts.unused)}")
    if found.passed_over:
        typer.echo(f"not read   {', '.join(found.passed_over[:_MOST_SHOWN])}")
    if found.example:
        _print_example(found)


def _kept(found: "Survey") -> str:
    """512 kept (10 of them shortened), dropped 14: 3 empty_message, 11 duplicate"""
    said = f"{found.kept:,} kept"
    if found.samples != found.counts.rows:
        said = f"{found.samples:,} samples in them, {said}"
    if found.shortened:
        said += f" ({found.shortened:,} of them lost trailing turns)"
    said += f", {found.dropped.total():,} dropped"
    causes = ", ".join(f"{count:,} {cause}" for cause, count in found.dropped.most_common())
    limit = f" at a context of {found.context:,}" if found.context else ""
    return said + (f": {causes}" if causes else "") + limit


def _num(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _listed(counter: Counter[str]) -> str:
    shown = ", ".join(f"{name} {count:,}" for name, count in counter.most_common(_MOST_SHOWN))
    more = len(counter) - _MOST_SHOWN
    return f"{shown} and {more:,} more" if more > 0 else shown


def _print_example(found: "Survey") -> None:
    from rung.tasks.lengths import bracketed, shorten

    pieces = shorten(found.example)
    if sys.stdout.isatty():
        typer.echo(f"example    {found.example_at}, what is trained on in green")
        _print_coloured(pieces)
    else:
        typer.echo(f"example    {found.example_at}, what is trained on in [brackets]")
        typer.echo(bracketed(pieces))


def _print_coloured(pieces: "list[Piece]") -> None:
    from rich.console import Console
    from rich.text import Text

    text = Text()
    for piece in pieces:
        text.append(piece.text, style="bold green" if piece.trained else "dim")
    Console(highlight=False).print(text)
