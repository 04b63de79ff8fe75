"""What the pages keep between requests: the catalogue, curves that were read, verdicts."""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from fastapi import HTTPException, Request

from rung.errors import ArtefactError
from rung.store.artefact import Artefact
from rung.store.catalogue import Catalogue
from rung.store.curves import Curves
from rung.store.manifest import find_damage
from rung.store.runs import Run, find_run

_MAX_CURVES = 24  # a curve of 100,000 steps takes some 10 MB
_BEGIN = threading.Lock()


@dataclass(frozen=True)
class Verdict:
    """What hashing every file of an artefact said, and when (seconds since 1970)."""

    damage: tuple[str, ...]
    at: float


class Shelf:
    """Of one application. Safe to share between the threads that answer requests."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.view = catalogue.view
        self.store = catalogue.store
        self._curves: OrderedDict[str, Curves] = OrderedDict()
        self._verdicts: dict[str, Verdict] = {}
        self._lock = threading.Lock()

    def run(self, key: str) -> Run:
        """The run with this recipe key or beginning of one; 404 without one."""
        run = find_run(self.view(), key)
        if run is None:
            raise HTTPException(404, f"no run {key!r:.80} in this store")
        return run

    def curves(self, run: Run) -> Curves:
        """What was read of a run stays until others push it out; only new lines are read."""
        with self._lock:
            kept = self._curves.pop(run.key, None) or Curves(run.metrics)
            kept.path = run.metrics  # moves when the run is done
            self._curves[run.key] = kept
            while len(self._curves) > _MAX_CURVES:
                self._curves.popitem(last=False)
        return kept

    def artefact(self, reference: str) -> Artefact:
        """By name, entry name or beginning of an id; 404 with the store's own sentence."""
        view = self.view()
        if reference in view.artefacts:
            return view.artefacts[reference]
        try:
            id = self.store.resolve(reference)
        except ArtefactError as error:
            raise HTTPException(404, str(error)) from None
        found = view.artefacts.get(id)
        if found is None:
            why = view.unreadable.get(id, "its manifest is gone")
            raise HTTPException(404, f"{reference!r:.80} cannot be read: {why}")
        return found

    def verdict(self, id: str) -> Verdict | None:
        return self._verdicts.get(id)

    def verify(self, artefact: Artefact) -> Verdict:
        """Hash every file now; takes about a second a gigabyte."""
        verdict = Verdict(tuple(find_damage(artefact)), time.time())
        self._verdicts[artefact.id] = verdict
        return verdict


def shelf_of(request: Request) -> Shelf:
    """The application's, made at its first use."""
    state = request.app.state
    with _BEGIN:
        if not hasattr(state, "shelf"):
            state.shelf = Shelf(Catalogue(state.rung.store))
    shelf: Shelf = state.shelf
    return shelf


def served_models(request: Request) -> dict[str, str]:
    """Name -> artefact id of what this process serves; nothing where it serves only pages."""
    service = getattr(request.app.state.rung, "service", None)
    return {} if service is None else {m.name: m.artefact_id for m in service.models()}
