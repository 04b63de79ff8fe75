"""Commands for people: chat, generate, report."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rung.cli_output import JsonOption, StoreOption, guarded, print_json

if TYPE_CHECKING:
    from rung.store.artefact import Artefact
    from rung.store.context import Progress
    from rung.store.store import Store

ModelArgument = Annotated[
    str, typer.Argument(help="A model: name, entry name, or the first digits of its id.")
]
TokensOption = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
TemperatureOption = Annotated[
    float, typer.Option(min=0.0, help="0 always takes the likeliest token.")
]
SystemOption = Annotated[str | None, typer.Option(help="System message.")]
SeedOption = Annotated[int, typer.Option(help="The same seed gives the same text.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file to `app`."""
    for command, example in (
        (chat, "rung chat quickstart/ppo"),
        (generate, 'rung generate quickstart/ppo --prompt "Explain json.dumps."'),
        (report, "rung report quickstart --out report.html"),
    ):
        app.command(command.__name__, epilog=f"Example: {example}")(guarded(command))


def chat(
    name: ModelArgument,
    system: SystemOption = None,
    max_new_tokens: TokensOption = 128,
    temperature: TemperatureOption = 0.7,
    seed: SeedOption = 0,
    store: StoreOption = None,
) -> None:
    """Talk to a model in the terminal; /quit ends, /reset starts anew."""
    from rung.engine.sampling import Sampling
    from rung.engine.talk import chat as talk

    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    talk(_model_folder(name, store=store), system=system, sampling=sampling)


def generate(
    name: ModelArgument,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Repeat for several; default: one a line from stdin.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the text; no chat template.")
    ] = False,
    system: SystemOption = None,
    max_new_tokens: TokensOption = 128,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Answer prompts without a dialogue, for scripts."""
    from rung.engine.sampling import Sampling
    from rung.engine.talk import generate_text

    folder = _model_folder(name, store=store)
    prompts = prompt or [line.rstrip("\n") for line in sys.stdin]
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    rows = generate_text(folder, prompts, chat=not raw, system=system, sampling=sampling)
    answers = [(text, row[0]) for text, row in zip(prompts, rows, strict=True)]
    if json:
        print_json([{"prompt": text, "text": a.text, "stopped": a.stopped} for text, a in answers])
        return
    for _, answer in answers:
        typer.echo(answer.text)


def report(
    name: Annotated[
        str | None, typer.Argument(help="Recipe or artefact; default: the latest recipe.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The HTML page; default: reports/ in the store.")
    ] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Numbers with intervals, plots and samples of every stage, on one HTML page."""
    from rung.store.lineage import recipe_artefacts
    from rung.store.store import Store

    opened = Store(store)
    title, names = recipe_artefacts(opened, name)
    if json:
        from rung.evals.figures import collect_figures

        print_json(collect_figures(names))
        if out is None:
            return
    page = out or opened.root / "reports" / f"{title}.html"
    write_page(names, opened, page, show=None)
    if not json:
        typer.echo(f"report: {page}")


def write_page(
    names: "dict[str, Artefact]", store: "Store", out: Path, *, show: "Progress | None"
) -> None:
    """The HTML report of these artefacts, and a table of its figures where `show` is given."""
    from rung.evals.report import write_report

    metrics = {n: path for n, a in names.items() if (path := store.metrics(a)) is not None}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_report(names, metrics, out)
    if show is not None:
        from rung.evals.figures import collect_figures
        from rung.evals.report import summary

        show.say(summary(collect_figures(names)))


def _model_folder(name: str, *, store: Path | None) -> Path:
    from rung.errors import ArtefactError
    from rung.store.store import Store

    opened = Store(store)
    artefact = opened.checked(opened.open(name))
    if artefact.kind != "model":
        models = [n for n, id in opened.names().items() if opened.get(id).kind == "model"]
        raise ArtefactError(
            f"{name} is a {artefact.kind}, not a model; models: {', '.join(models) or 'none yet'}"
        )
    return artefact.path
