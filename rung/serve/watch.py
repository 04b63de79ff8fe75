"""Promotion: when a name in the store comes to stand for another artefact, its model follows."""

import threading
from collections.abc import Callable, Mapping

from rung.engine.service import Service
from rung.errors import ArtefactError, RungError
from rung.serve.state import GENERATES, ServerState
from rung.store.store import Store


class Watcher:
    """Looks at the names every few seconds and swaps what was promoted.

    Requests that run end on the old weights, later ones get the new: the engine's part. A model
    that cannot be taken over is told of once, and the old one stays.
    """

    def __init__(
        self, state: ServerState, served: Mapping[str, str], *, say: Callable[[str], None] = print
    ) -> None:
        """served: name -> id of the artefact that is loaded."""
        self._state, self._say = state, say
        self._served = dict(served)
        self._refused: dict[str, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rung-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._state.settings.poll_seconds):
            self.look()

    def look(self) -> None:
        """One look at all names."""
        service = self._state.service
        if service is None or self._state.closing:
            return
        for name, loaded in list(self._served.items()):
            try:
                id = self._state.store.resolve(name)
            except (RungError, OSError):
                continue  # the name is gone: what is loaded stays
            if id in (loaded, self._refused.get(name)):
                continue
            try:
                swap(self._state.store, service, name, id)
            except RungError as error:
                self._refused[name] = id
                self._state.metrics.swaps.labels("failed").inc()
                self._say(f"{name} now is {id[:12]}, which cannot be served: {error}")
                continue
            self._served[name] = id
            self._state.metrics.swaps.labels("ok").inc()
            self._say(f"{name}: {loaded[:12]} -> {id[:12]}")


def swap(store: Store, service: Service, name: str, id: str) -> None:
    """Load artefact `id` and let `name` be answered by it; ArtefactError when it is no model."""
    artefact = store.get(id)
    if artefact.kind not in GENERATES:
        raise ArtefactError(f"{artefact.short_id} is a {artefact.kind}, not a model")
    service.swap(name, store.checked(artefact).path)
