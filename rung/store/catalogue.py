"""What lies in a store, read once: artefacts never change, so only new manifests are read."""

import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from rung.errors import ArtefactError
from rung.store.artefact import Artefact
from rung.store.manifest import read_manifest
from rung.store.store import Store

_REST = 2_000_000_000  # nanoseconds


class Catalogue:
    """Artefacts, names and children of a store, for a process that looks at it again and again.

    Every call looks whether the folders changed (two stats) and reads what is new: 0.2 ms a
    manifest, once. Safe to share between threads.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._artefacts: dict[str, Artefact] = {}
        self._children: dict[str, list[tuple[str, str]]] = defaultdict(list)
        self._names: dict[str, str] = {}
        self._called: dict[str, list[str]] = {}
        self._of_key: dict[str, str] = {}
        self._seen: dict[Path, int] = {}
        self.unreadable: dict[str, str] = {}  # id -> what is wrong with its manifest

    def artefacts(self) -> Mapping[str, Artefact]:
        """Every readable artefact by id; not to be changed."""
        with self._lock:
            self._refresh()
            return self._artefacts

    def names(self) -> Mapping[str, str]:
        """Every name and the id it stands for, sorted."""
        with self._lock:
            self._refresh()
            return self._names

    def get(self, id: str) -> Artefact | None:
        return self.artefacts().get(id)

    def children(self, id: str) -> list[tuple[str, Artefact]]:
        """(role, artefact) of everything made from `id`, oldest first."""
        known = self.artefacts()
        found = [(role, known[child]) for role, child in self._children.get(id, [])]
        return sorted(found, key=lambda pair: (built_at(pair[1]), pair[0]))

    def names_of(self, id: str) -> list[str]:
        self.names()
        return self._called.get(id, [])

    def title(self, id: str) -> str:
        """The name to show: its first, else the entry that built it, else the start of the id."""
        if called := self.names_of(id):
            return called[0]
        artefact = self._artefacts.get(id)
        return str(artefact.notes.get("entry") or id[:12]) if artefact else id[:12]

    def of_key(self, key: str) -> Artefact | None:
        """What the run with this recipe key built."""
        known = self.artefacts()
        return known.get(self._of_key.get(key, ""))

    def recipes(self) -> list[str]:
        """Names before a "/", the one that was named last first."""
        found = sorted({name.split("/")[0] for name in self.names() if "/" in name})
        return sorted(found, key=lambda recipe: -self.store.named_at(f"{recipe}/"))

    def _refresh(self) -> None:
        objects, names = self.store.root / "objects", self.store.root / "names"
        if self._changed(objects):
            self._read_new(set(self.store.ids()))
        if self._changed(names):
            self._names = self.store.names()
            called: dict[str, list[str]] = defaultdict(list)
            for name, id in self._names.items():
                called[id].append(name)
            self._called = dict(called)

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

    def _read_new(self, ids: set[str]) -> None:
        # A new mapping: whoever iterates over the old one in another thread is not disturbed.
        fresh = {id: artefact for id, artefact in self._artefacts.items() if id in ids}
        for id in sorted(ids - fresh.keys()):
            try:
                fresh[id] = read_manifest(self.store.root / "objects" / id)
            except ArtefactError as error:
                self.unreadable[id] = str(error)
        children: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for id, artefact in fresh.items():
            for role, parent in artefact.parents.items():
                children[parent].append((role, id))
        keys = {str(a.notes.get("recipe_key")): id for id, a in fresh.items()}
        self._artefacts, self._children, self._of_key = fresh, children, keys
        gone = self.unreadable.keys() - (ids - fresh.keys())
        self.unreadable = {k: v for k, v in self.unreadable.items() if k not in gone}


def built_at(artefact: Artefact) -> str:
    """UTC, as its notes say; "" when they do not."""
    return str(artefact.notes.get("time", ""))
