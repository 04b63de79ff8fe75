"""The command line: words to calls, no logic. Nothing heavy is imported before it is used."""

import typer

from rung import (
    cli_data,
    cli_doctor,
    cli_exchange,
    cli_predict,
    cli_run,
    cli_serve,
    cli_store,
    cli_talk,
)

app = typer.Typer(
    name="rung",
    help="Raise a language model from raw text to an aligned assistant, one stage at a time.",
    epilog="Example: rung run recipes/quickstart.yaml",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for room in (
    cli_run,
    cli_exchange,
    cli_talk,
    cli_predict,
    cli_store,
    cli_data,
    cli_doctor,
    cli_serve,
):
    room.register(app)


def main() -> None:
    """Entry point of the `rung` command."""
    app()


if __name__ == "__main__":
    main()
