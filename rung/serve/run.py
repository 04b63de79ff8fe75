"""The process behind `rung serve`: open the port, load the models, answer, finish, leave."""

import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from rung.engine.service import Service
from rung.errors import ArtefactError, ConfigError
from rung.serve.app import create_app
from rung.serve.guard import LOOPBACK
from rung.serve.state import GENERATES, ServerState
from rung.serve.watch import Watcher
from rung.store.store import Store

# Clients keep connections for a minute or so; one that is closed on them in that moment is an
# error they see. The server should be the one that waits longer.
KEEP_ALIVE_SECONDS = 75


SWITCH_SECONDS = 0.0005
"""For how long one thread keeps the interpreter from another. The engine needs it a hundred times
in a step; with Python's 5 ms it waits for all that the event loop has to say. With 16 streams of a
10 M model it gave 8 % more tokens/s."""


class Server(uvicorn.Server):
    """SIGTERM and Ctrl-C: take nothing new, finish what runs, exit code 0. A second one ends it."""

    def __init__(self, config: uvicorn.Config, state: ServerState) -> None:
        super().__init__(config)
        self.state = state

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.state.closing = True
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True


def open_port(host: str, port: int) -> socket.socket:
    """A listening socket; ConfigError where the port is taken or the host is not here."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; "
            "choose another --port (0: any free one) or --host"
        ) from None


def check_binding(host: str, keys: tuple[str, ...]) -> None:
    """ConfigError where others could reach a server that is open to all."""
    if host not in LOOPBACK and not keys:
        raise ConfigError(
            f"--host {host} can be reached from other machines, and no API key is set: give "
            "--api-key-file FILE (a key a line) or set RUNG_API_KEY"
        )


def serve(
    state: ServerState,
    load: Callable[[], Service | None],
    *,
    listening: socket.socket,
    names: Mapping[str, str],
    ready: Callable[[], None],
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> None:
    """Answer until a signal comes; raises what `load` raised.

    The port is open while `load` works: clients are told 503 and try again. names: served name ->
    id of the artefact that `load` brings.
    """
    config = uvicorn.Config(
        create_app(state),
        access_log=False,
        log_level="warning",
        lifespan="off",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(state.settings.drain_seconds)),
    )
    sys.setswitchinterval(SWITCH_SECONDS)
    server = Server(config, state)
    watcher = Watcher(state, names, say=say)
    failed: list[BaseException] = []

    def bring() -> None:
        try:
            service = load()
        except BaseException as error:
            failed.append(error)
            server.should_exit = True
            return
        state.service = service
        if service is not None:
            watcher.start()
        if not state.closing:
            ready()

    loader = threading.Thread(target=bring, name="rung-load", daemon=True)
    loader.start()
    try:
        server.run(sockets=[listening])
    finally:
        state.closing = True
        watcher.stop()
        if state.service is not None:
            state.service.close(drain_seconds=0.0 if server.force_exit else 5.0)
        state.shut()
    if failed:
        raise failed[0]


def find_served(store: Store, names: Sequence[str]) -> dict[str, tuple[str, Path]]:
    """Name -> (artefact id, folder) of what is to be served; every file is hashed first."""
    found = {}
    for name in names:
        artefact = store.checked(store.open(name))
        if artefact.kind not in GENERATES:
            raise ArtefactError(
                f"{name} is a {artefact.kind}, which answers nothing; `rung ls` lists the models"
            )
        found[name] = (artefact.id, artefact.path)
    return found
