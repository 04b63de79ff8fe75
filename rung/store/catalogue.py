"""What lies in a store, read once: artefacts never change, so only new manifests are read."""

import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rung.errors import ArtefactError
from rung.store.artefact import Artefact
from rung.store.manifest import read_manifest
from rung.store.store import Store

_REST = 2_000_000_000  # nanoseconds


@dataclass(frozen=True)
class View:
    """A store at one moment. Not to be changed: threads share it.

    artefacts: by id. names: name -> id, sorted. unreadable: id -> what is wrong with its manifest.
    """

    store: Store
    artefacts: Mapping[str, Artefact] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    _children: Mapping[str, list[tuple[str, str]]] = field(default_factory=dict)
    _called: Mapping[str, list[str]] = field(default_factory=dict)
    _of_key: Mapping[str, str] = field(default_factory=dict)

    def children(self, id: str) -> list[tuple[str, Artefact]]:
        """(role, artefact) of everything made from `id`, oldest first."""
        found = [(role, self.artefacts[child]) for role, child in self._children.get(id, [])]
        return sorted(found, key=lambda pair: (built_at(pair[1]), pair[0]))

    def names_of(self, id: str) -> list[str]:
        return self._called.get(id, [])

    def title(self, id: str) -> str:
        """The name to show: its first, else the entry that built it, else the start of the id."""
        if called := self.names_of(id):
            return called[0]
        artefact = self.artefacts.get(id)
        return str(artefact.notes.get("entry") or id[:12]) if artefact else id[:12]

    def of_key(self, key: str) -> Artefact | None:
        """What the run with this recipe key built."""
        return self.artefacts.get(self._of_key.get(key, ""))

    def recipes(self) -> list[str]:
        """Names before a "/", the one that was named last first."""
        found = sorted({name.split("/")[0] for name in self.names if "/" in name})
        return sorted(found, key=lambda recipe: -self.store.named_at(f"{recipe}/"))


class Catalogue:
    """Views of a store, for a process that looks at it again and again. Safe between threads."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._view = View(store)
        self._seen: dict[Path, int] = {}

    def view(self) -> View:
        """The store now: two stats, and the new manifests where its folders changed."""
        with self._lock:
            objects, names = (self.store.root / folder for folder in ("objects", "names"))
            came, named = self._changed(objects), self._changed(names)
            if came or named:
                self._view = self._look(came=came, named=named)
            return self._view

    def _changed(self, folder: Path) -> bool:
        """Whether an entry of `folder` came, went or was replaced since the last call."""
        now = folder.stat().st_mtime_ns if folder.is_dir() else 0
        if self._seen.get(folder) == now:
            return False
        # Clocks of file systems are coarse: a folder that changed just now may change once more
        # within the same tick, so it is looked at again until it has rested.
        if time.time_ns() - now > _REST:
            self._seen[folder] = now
        return True

    def _look(self, *, came: bool, named: bool) -> View:
        old = self._view
        artefacts, unreadable = old.artefacts, old.unreadable
        if came:
            artefacts, unreadable = self._read(set(self.store.ids()), old.artefacts)
        children: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for id, artefact in artefacts.items():
            for role, parent in artefact.parents.items():
                children[parent].append((role, id))
        names = self.store.names() if named else old.names
        called: dict[str, list[str]] = defaultdict(list)
        for name, id in names.items():
            called[id].append(name)
        keys = {str(a.notes.get("recipe_key")): id for id, a in artefacts.items()}
        return View(self.store, artefacts, names, unreadable, dict(children), dict(called), keys)

    def _read(
        self, ids: set[str], known: Mapping[str, Artefact]
    ) -> tuple[dict[str, Artefact], dict[str, str]]:
        """(readable artefacts of `ids`, what is wrong with the others)."""
        found = {id: artefact for id, artefact in known.items() if id in ids}
        wrong = {}
        for id in sorted(ids - found.keys()):
            try:
                found[id] = read_manifest(self.store.root / "objects" / id)
            except ArtefactError as error:
                wrong[id] = str(error)
        return found, wrong


def built_at(artefact: Artefact) -> str:
    """UTC, as its notes say; "" when they do not."""
    return str(artefact.notes.get("time", ""))
