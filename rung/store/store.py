"""The store: artefacts by id, names that point at them, and the work of unfinished stages."""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rung.config import did_you_mean
from rung.errors import ArtefactError
from rung.store.adapter import layers_below
from rung.store.artefact import Artefact
from rung.store.durable import hash_tree, sync_folder, sync_tree, write_atomic
from rung.store.manifest import (
    FILE,
    artefact_id,
    find_damage,
    read_manifest,
    way_out,
    write_manifest,
)
from rung.store.work import Work, lock_file

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*(/[A-Za-z0-9_][A-Za-z0-9_.@-]*)?")
_HEX = re.compile(r"[0-9a-f]{4,64}")


class Store:
    """A folder of immutable artefacts.

    objects/<id>/         manifest.json and files, never changed
    names/<name>          the id that a name stands for ("recipe/entry" is kept as "recipe+entry")
    built/<recipe key>    the id that a stage with this key built
    work/<recipe key>/    a stage at work, or killed: out/ and run/
    runs/<recipe key>/    metrics of finished stages
    """

    def __init__(self, root: Path | str | None = None):
        """root: the folder; default is $RUNG_STORE, else .rung in the current folder."""
        self.root = Path(root or os.environ.get("RUNG_STORE") or ".rung").absolute()
        self._whole: set[str] = set()  # ids hashed in full by this process

    # names

    def names(self) -> dict[str, str]:
        """Every name and the id it stands for, sorted by name."""
        folder = self.root / "names"
        files = folder.iterdir() if folder.is_dir() else iter(())
        return {
            path.name.replace("+", "/"): path.read_text().strip()
            for path in sorted(files)
            if not path.name.startswith(".")
        }

    def set_name(self, name: str, artefact: Artefact) -> None:
        """Let `name` stand for `artefact` from now on."""
        if not _NAME.fullmatch(name):
            raise ArtefactError(
                f"{name!r} is not a name: use letters, digits, '_', '-', '.', '@' "
                "and at most one '/' inside"
            )
        write_atomic(self.root / "names" / name.replace("/", "+"), artefact.id + "\n")

    def names_of(self, artefact: Artefact) -> list[str]:
        return [name for name, id in self.names().items() if id == artefact.id]

    def named_at(self, prefix: str) -> float:
        """When a name with this prefix was last set, in seconds since 1970; 0 if never."""
        files = (self.root / "names").glob(prefix.replace("/", "+") + "*")
        return max((path.stat().st_mtime for path in files), default=0.0)

    # reading

    def open(self, reference: str) -> Artefact:
        """The artefact with this name, entry name ("base" for "quickstart/base") or id prefix."""
        return self.get(self.resolve(reference))

    def resolve(self, reference: str) -> str:
        """The full id that `reference` stands for."""
        names = self.names()
        if reference in names:
            return names[reference]
        entries = {name: id for name, id in names.items() if name.endswith("/" + reference)}
        if len(set(entries.values())) == 1:
            return next(iter(entries.values()))
        if entries:
            raise ArtefactError(f"{reference!r} is ambiguous: say one of {', '.join(entries)}")
        if _HEX.fullmatch(reference):
            ids = [id for id in self.ids() if id.startswith(reference)]
            if len(ids) == 1:
                return ids[0]
            if ids:
                raise ArtefactError(f"id {reference} fits {len(ids)} artefacts: give more digits")
        hint = did_you_mean(reference, list(names))
        raise ArtefactError(
            f"no artefact {reference!r} in {self.root}{hint or ' (the store is empty)'}"
        )

    def ids(self) -> list[str]:
        """Ids of all complete artefacts, sorted."""
        folder = self.root / "objects"
        return sorted(p.parent.name for p in folder.glob(f"*/{FILE}")) if folder.is_dir() else []

    def get(self, id: str) -> Artefact:
        """The artefact with this full id; presence and sizes of its files are checked."""
        artefact = read_manifest(self.root / "objects" / id)
        self._refuse_damage(artefact, find_damage(artefact, full=False))
        return artefact

    def checked(self, artefact: Artefact) -> Artefact:
        """`artefact` after hashing every file once per process; ArtefactError when one changed,
        or when one of the bases under an adapter did."""
        for below in layers_below(artefact.path)[1:]:
            self.checked(self.get(below.name))
        if artefact.id not in self._whole:
            self._refuse_damage(artefact, find_damage(artefact))
            self._whole.add(artefact.id)
        return artefact

    def _refuse_damage(self, artefact: Artefact, damage: list[str]) -> None:
        if damage:
            raise ArtefactError(
                f"{artefact.kind} {artefact.short_id} in {artefact.path} is damaged: "
                f"{'; '.join(damage)}. {way_out()}"
            )

    def artefacts(self) -> list[Artefact]:
        """All artefacts whose manifest can be read, sorted by id; damage is `rung verify`'s job."""
        found = []
        for id in self.ids():
            try:
                found.append(read_manifest(self.root / "objects" / id))
            except ArtefactError:
                continue
        return found

    def metrics(self, artefact: Artefact) -> Path | None:
        """metrics.jsonl of the run that built `artefact`, if it wrote one."""
        path = self.root / "runs" / str(artefact.notes.get("recipe_key")) / "metrics.jsonl"
        return path if path.is_file() else None

    # writing

    def find(self, key: str) -> Artefact | None:
        """What the stage with this recipe key built; a commit cut short by a kill is completed."""
        work = Work(key=key, folder=self.root / "work" / key)
        if not work.folder.exists():
            return self._built(key) if self._is_built(key) else None
        work.lock()
        try:
            complete = (work.out / FILE).is_file() or self._is_built(key)
            return self._finish(key) if complete else None
        finally:
            work.release()

    def _is_built(self, key: str) -> bool:
        index = self.root / "built" / key
        return index.is_file() and self._object(index.read_text().strip()).is_file()

    def _object(self, id: str) -> Path:
        return self.root / "objects" / id / FILE

    def _built(self, key: str) -> Artefact:
        return self.get((self.root / "built" / key).read_text().strip())

    def begin(self, key: str) -> Work:
        """The locked work folder of a stage: empty `out`, and `run` as a killed run left it."""
        work = Work(key=key, folder=self.root / "work" / key)
        work.prepare()
        return work

    def commit(
        self,
        work: Work,
        *,
        kind: str,
        stage: str,
        config: Mapping[str, Any],
        parents: Mapping[str, str],
        notes: Mapping[str, Any],
    ) -> Artefact:
        """Make the files of `work.out` an artefact: visible as a whole, or not at all."""
        files = hash_tree(work.out)
        if not files:
            raise ArtefactError(f"stage {stage} wrote no files into {work.out}")
        id = artefact_id(kind=kind, config=config, parents=parents, files=files)
        sync_tree(work.out)
        artefact = Artefact(
            id=id,
            kind=kind,
            path=work.out,
            stage=stage,
            config=config,
            parents=parents,
            files=files,
            notes={**notes, "recipe_key": work.key},
        )
        write_manifest(work.out, artefact)
        return self._finish(work.key)

    def _finish(self, key: str) -> Artefact:
        """The second half of a commit. Each step may be repeated, so a kill between is harmless."""
        folder = self.root / "work" / key
        out = folder / "out"
        if (out / FILE).is_file():
            id = read_manifest(out).id
            write_atomic(self.root / "built" / key, id + "\n")
            target = self.root / "objects" / id
            if target.exists() and not self._is_whole(target):
                shutil.rmtree(target)
            if target.exists():
                shutil.rmtree(out)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                out.rename(target)
                sync_folder(target.parent)
        artefact = self._built(key)
        self._keep_records(folder / "run", self.root / "runs" / key)
        shutil.rmtree(folder)
        return artefact

    def _is_whole(self, folder: Path) -> bool:
        try:
            return not find_damage(read_manifest(folder))
        except ArtefactError:
            return False

    def _keep_records(self, run: Path, kept: Path) -> None:
        """Move the JSON records at the top of `run` to `kept`; checkpoints and caches go."""
        for path in sorted(run.glob("*.json*")) if run.is_dir() else []:
            kept.mkdir(parents=True, exist_ok=True)
            os.replace(path, kept / path.name)

    # sharing

    @contextmanager
    def shared(self) -> Iterator[None]:
        """While runs hold this, `exclusive` waits outside: gc never removes what a run re-uses."""
        with lock_file(self.root / "lock", shared=True, refusal=f"{self.root} is being cleaned"):
            yield

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        refusal = f"a run is using {self.root}; clean up when it has ended"
        with lock_file(self.root / "lock", shared=False, refusal=refusal):
            yield
