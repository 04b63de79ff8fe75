"""A small real corpus (docstrings of the standard library) and a quiet stage context, for tests."""

import importlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rung.store.artefact import Artefact, FileEntry
from rung.store.context import StageContext

PARTS = {
    "instruct": [
        *("json", "shutil", "statistics", "random", "argparse", "csv", "logging", "zipfile"),
        *("tempfile", "textwrap", "asyncio.tasks", "email.message", "unittest.mock"),
        *("http.client", "subprocess", "tarfile", "concurrent.futures.thread"),
    ],
    "text_only": ["fractions", "configparser", "pathlib", "gettext", "ftplib", "smtplib"],
    "nowhere": ["mailbox", "optparse", "difflib", "ipaddress", "dis", "imaplib", "turtle"],
}


class Quiet:
    """A progress line that remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def start(self, title: str, *, total: float | None = None, unit: str = "") -> None:
        pass

    def update(self, done: float, **figures: float | str) -> None:
        pass

    def say(self, line: str) -> None:
        self.lines.append(line)

    def finish(self) -> None:
        pass


def artefact(folder: Path, kind: str) -> Artefact:
    files = {path.name: FileEntry("", path.stat().st_size) for path in sorted(folder.iterdir())}
    return Artefact(
        id=folder.name, kind=kind, path=folder, stage="", config={}, parents={}, files=files
    )


def stage_context(
    folder: Path,
    *,
    inputs: Mapping[str, Artefact] | None = None,
    many: Mapping[str, Sequence[Artefact]] | None = None,
) -> StageContext:
    """A context with folders `out` and `run` below `folder`; what `run` holds is kept."""
    for name in ("out", "run"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return StageContext(
        inputs=inputs or {},
        many=many or {},
        out=folder / "out",
        run=folder / "run",
        progress=Quiet(),
        names={},
    )


def write_corpus(folder: Path) -> Artefact:
    """documents.parquet from the docstrings of the modules in PARTS, one document a module."""
    rows = []
    for part, modules in PARTS.items():
        for module in modules:
            entries = list(_entries(module))
            text = "\n\n".join(f"{e['name']}{e['signature']}\n{e['doc']}" for e in entries)
            rows.append(
                {
                    "id": module,
                    "text": text,
                    "domain": module.partition(".")[0],
                    "split": "heldout" if part == "nowhere" else "train",
                    "part": part,
                    "group": module,
                    "meta": json.dumps({"entries": entries}),
                }
            )
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "documents.parquet")
    return artefact(folder, "corpus")


def _entries(module: str):
    loaded = importlib.import_module(module)
    for name, value in sorted(vars(loaded).items()):
        if getattr(value, "__module__", None) != module or name.startswith("_"):
            continue
        if inspect.isclass(value):
            yield from _entry(f"{module}.{name}", "class", module, value)
            for sub, method in sorted(vars(value).items()):
                if inspect.isfunction(method):
                    yield from _entry(f"{module}.{name}.{sub}", "method", module, method)
        elif inspect.isfunction(value):
            yield from _entry(f"{module}.{name}", "function", module, value)


def _entry(name: str, kind: str, module: str, value):
    doc = inspect.cleandoc(value.__doc__ or "")
    if not doc:
        return
    try:
        signature = str(inspect.signature(value))
    except (TypeError, ValueError):
        signature = ""
    paragraph = " ".join(doc.split("\n\n")[0].split())
    summary = paragraph.split(". ")[0].rstrip(".") + "."
    yield {
        "name": name,
        "kind": kind,
        "module": module,
        "signature": name + signature if signature else "",
        "summary": summary,
        "doc": doc,
    }
