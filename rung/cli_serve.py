"""The command serve: models behind OpenAI's API, and pages."""

import importlib.util
from pathlib import Path
from typing import Annotated, Literal

import typer

from rung.cli_output import JsonOption, StoreOption, guarded, print_json

_NEEDS = {
    "fastapi": "fastapi",
    "markdown_it": "markdown-it-py",
    "nh3": "nh3",
    "prometheus_client": "prometheus-client",
    "uvicorn": "uvicorn",
}


def register(app: typer.Typer) -> None:
    """Add the commands of this file to `app`."""
    app.command("serve", epilog="Example: rung serve quickstart/ppo --port 8000")(guarded(serve))


def serve(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Models: names, entry names, or first digits of ids; none: the pages alone."
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; other than loopback needs an API key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with API keys, one a line; also: $RUNG_API_KEY.")
    ] = None,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Requests that may wait; more are told 429.")
    ] = 256,
    max_rows: Annotated[
        int, typer.Option(min=1, help="Answers that are written at the same time.")
    ] = 32,
    precision: Annotated[
        Literal["auto", "bf16", "fp32"],
        typer.Option(help="Of matrix products; auto: bf16 where the processor has it."),
    ] = "auto",
    max_body_mb: Annotated[float, typer.Option(min=0.001, help="Largest request, in MB.")] = 4.0,
    drain_seconds: Annotated[
        float, typer.Option(min=0, help="On SIGTERM, time for what runs to end.")
    ] = 60.0,
    feedback: Annotated[
        bool,
        typer.Option(help="Whether the chat page asks for votes and comments, and keeps them."),
    ] = True,
    log_traffic: Annotated[
        bool, typer.Option("--log-traffic", help="Write requests and answers, redacted.")
    ] = False,
    reward: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A reward model that scores the logged answers."),
    ] = None,
    slow_seconds: Annotated[
        float, typer.Option(min=0, help="The log marks answers that took longer.")
    ] = 20.0,
    low_reward: Annotated[
        float, typer.Option(help="The log marks answers that score lower.")
    ] = -1.0,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Serve models: OpenAI's API under /v1, pages for people."""
    _require_extra()
    from rung.engine.service import Service, ServiceOptions
    from rung.errors import ConfigError
    from rung.serve.keys import load_keys
    from rung.serve.run import check_binding, find_served, open_port
    from rung.serve.run import serve as run
    from rung.serve.state import ServerState, Settings
    from rung.serve.traffic import open_traffic
    from rung.store.store import Store

    keys = load_keys(api_key_file)
    check_binding(host, keys)
    if reward is not None and not log_traffic:
        raise ConfigError("--reward scores what the traffic log holds: add --log-traffic")
    opened = Store(store)
    found = find_served(opened, names or [])
    settings = Settings(
        host=host,
        api_keys=keys,
        max_body_bytes=round(max_body_mb * 1e6),
        max_choices=min(256, max_queue + max_rows),  # more could never be taken
        drain_seconds=drain_seconds,
        collect_feedback=feedback,
    )
    traffic = None
    if log_traffic:
        traffic = open_traffic(
            opened, slow_seconds=slow_seconds, low_reward=low_reward, reward=reward
        )
    listening = open_port(host, port)
    state = ServerState(opened, settings, traffic=traffic, expects_models=bool(found))
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{listening.getsockname()[1]}"

    def load() -> Service | None:
        if not found:
            return None
        folders = {name: folder for name, (_, folder) in found.items()}
        return Service.open(
            folders,
            options=ServiceOptions(max_rows=max_rows, max_queue=max_queue, precision=precision),
        )

    def ready() -> None:
        if json:
            print_json({"url": url, "models": {name: id for name, (id, _) in found.items()}})
            return
        what = f"serves {', '.join(found)} ({url}/v1)" if found else "serves the pages, no model"
        typer.echo(f"{url}  {what}; Ctrl-C ends it")

    run(
        state,
        load,
        listening=listening,
        names={name: id for name, (id, _) in found.items()},
        ready=ready,
        say=lambda line: typer.echo(line, err=True),
    )


def _require_extra() -> None:
    from rung.errors import ConfigError

    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        packages = ", ".join(_NEEDS[name] for name in missing)
        raise ConfigError(f"`rung serve` needs {packages}: pip install 'rung[serve]'")
