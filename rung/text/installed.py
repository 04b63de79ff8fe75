"""The documentation that a Python installation carries: topics, standard library, packages.

Packages are read as source, not imported: faster, and without side effects.
"""

import contextlib
import gc
import importlib.metadata
import importlib.util
import multiprocessing
import multiprocessing.connection
import os
import platform
import signal
import sysconfig
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pydantic

from rung.config import Config
from rung.errors import DataError
from rung.text import native
from rung.text.docstrings import Definition, ModuleDocs, read_docstrings
from rung.text.entry import build_entry, definition_document, module_document, topic_document
from rung.text.public_names import is_private, public_definitions
from rung.text.record import Document

_NO_DOCS = (
    "test tests conftest benchmarks examples vendor vendored third_party externals site-packages "
    "dist-packages idlelib turtledemo lib2to3 ensurepip pydoc_data distutils antigravity this setup"
)
SKIPPED_PARTS = frozenset(_NO_DOCS.split())
"""Folders and files that hold no documentation of the package itself."""

GROUP_PARTS = 3  # of a dotted module name; deeper modules are split together with their parent


class Installed(Config):
    """Which documentation of this Python installation to read."""

    stdlib: bool = pydantic.Field(True, description="language topics and the standard library")
    packages: tuple[str, ...] = pydantic.Field((), description="import names of packages")
    optional: tuple[str, ...] = pydantic.Field(
        (), description="import names of packages that are left out where they are not installed"
    )


class InstalledDocs(NamedTuple):
    """documents: in a fixed order. skipped: why -> names of packages or files left out."""

    documents: list[Document]
    skipped: dict[str, list[str]]


class _File(NamedTuple):
    domain: str
    module: str
    path: str
    is_package: bool


def installed_fingerprint(source: Installed) -> dict[str, str]:
    """Version of Python and of every package named: what this source's text depends on."""
    versions = {"python": platform.python_version()}
    for package in (*source.packages, *source.optional):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found = _locate(package)
            versions[package] = str(sorted(p.stat().st_size for p in found)) if found else "none"
    return versions


def read_installed(
    source: Installed, *, workers: int | None = None, saw: Callable[[int], None] | None = None
) -> InstalledDocs:
    """All documents of `source`, the same for the same versions whatever the machine.

    workers: processes that parse source (None: one per core, up to 8; 0: this process). saw: told
    how many files are read so far. DataError names packages that are not installed.
    """
    files, skipped = _find_files(source)
    workers = _num_workers() if workers is None else workers
    parsed, unparsable = _parse(files, workers=workers, saw=saw)
    if unparsable:
        skipped["does not parse"] = unparsable
    documents: dict[str, Document] = {}
    if source.stdlib:
        documents |= {document.id: document for document in _topics()}
    domains = (["stdlib"] if source.stdlib else []) + sorted({*source.packages, *source.optional})
    home = {file.module: file.domain for file in files}
    for domain in domains:
        modules = [docs for docs in parsed if home[docs.module] == domain]
        for document in _domain_documents(domain, modules):
            documents.setdefault(document.id, document)
    return InstalledDocs(list(documents.values()), skipped)


def _find_files(source: Installed) -> tuple[list[_File], dict[str, list[str]]]:
    missing = [p for p in source.packages if not _locate(p)]
    if missing:
        raise DataError(
            f"not installed: {', '.join(missing)}; install {'it' if len(missing) == 1 else 'them'}"
            ", take the name out of source.installed.packages, or move it to "
            "source.installed.optional"
        )
    absent = sorted(p for p in source.optional if not _locate(p))
    files: list[_File] = []
    if source.stdlib:
        root = Path(sysconfig.get_path("stdlib"))
        for file in _walk(root, root, domain="stdlib"):  # os.path is posixpath or ntpath
            is_path = file.module == os.path.__name__
            files.append(file._replace(module="os.path") if is_path else file)
    for package in sorted({*source.packages, *source.optional} - set(absent)):
        for path in _locate(package):
            files += _walk(path, path.parent, domain=package)
    return files, ({"not installed": absent} if absent else {})


def _locate(package: str) -> list[Path]:
    """Folders or the one file of a top-level package, found without importing it."""
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None:
        return []
    if spec.submodule_search_locations:
        return sorted(Path(p) for p in set(spec.submodule_search_locations))
    return [Path(spec.origin)] if spec.origin and spec.origin.endswith(".py") else []


def _walk(path: Path, root: Path, *, domain: str) -> Iterator[_File]:
    if path.is_dir():
        for child in sorted(path.iterdir()):
            stem = child.stem if child.suffix == ".py" else child.name
            if stem not in SKIPPED_PARTS and stem != "__pycache__":
                is_package = child.is_dir() and "." not in child.name
                if child.suffix == ".py" or is_package:
                    yield from _walk(child, root, domain=domain)
        return
    parts = list(path.relative_to(root).with_suffix("").parts)
    is_package = parts[-1] == "__init__" and len(parts) > 1
    if all(part.isidentifier() for part in parts):
        module = ".".join(parts[:-1] if is_package else parts)
        yield _File(domain, module, str(path), is_package)


def _num_workers() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, 8)


def _parse(
    files: Sequence[_File], *, workers: int, saw: Callable[[int], None] | None
) -> tuple[list[ModuleDocs], list[str]]:
    """Public modules, and of the private ones those that a parsed module re-exports from."""
    private = {file.module: file for file in files if is_private(file.module)}
    wave = [file for file in files if file.module not in private]
    parsed: list[ModuleDocs] = []
    unparsable: list[str] = []
    num_read = 0
    with _pool(workers if len(files) > 200 else 0) as apply:
        while wave:
            chunks = [wave[i : i + 50] for i in range(0, len(wave), 50)]
            results: list[ModuleDocs | None] = []
            for chunk in apply(_parse_chunk, chunks):
                results += chunk
                if saw is not None:
                    saw(num_read + len(results))
            num_read += len(results)
            pairs = zip(wave, results, strict=True)
            unparsable += [file.module for file, docs in pairs if docs is None]
            new = [docs for docs in results if docs is not None]
            parsed += new
            sources = {
                part
                for docs in new
                for module, name, _ in docs.imports
                for part in (module, f"{module}.{name}")
            }
            wave = [private.pop(module) for module in sorted(sources & private.keys())]
    return parsed, unparsable


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """An ordered map: over processes, or here where starting them takes longer than the work."""
    if workers < 2:
        yield map
        return
    context = multiprocessing.get_context("spawn")  # fork is unsafe beside engine threads
    with ProcessPoolExecutor(workers, context, initializer=_die_with_parent) as pool:
        yield pool.map


def _parse_chunk(files: Sequence[_File]) -> list[ModuleDocs | None]:
    collects = gc.isenabled()
    gc.disable()  # syntax trees are many objects without cycles: collecting costs a third
    try:
        return [_parse_file(file) for file in files]
    finally:
        if collects:
            gc.enable()


def _parse_file(file: _File) -> ModuleDocs | None:
    source = Path(file.path).read_bytes()
    has_strings = b'"""' in source or b"'''" in source
    if not has_strings and not file.path.endswith("__init__.py"):  # those tell the public names
        return ModuleDocs(file.module, "", ())
    try:
        text = source.decode("utf-8-sig")
        return read_docstrings(text, module=file.module, is_package=file.is_package)
    except (SyntaxError, ValueError, RecursionError):
        return None


def _die_with_parent() -> None:
    """Ends this worker when its parent is killed; the pool alone would wait for work forever.

    Ctrl-C goes to the parent, which stops the pool; a traceback per worker would help nobody.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _topics() -> Iterator[Document]:
    from pydoc_data import topics  # a table of texts, large: read only when asked for

    for topic, text in sorted(topics.topics.items()):
        yield topic_document(topic, text, domain="stdlib")


def _domain_documents(domain: str, modules: Sequence[ModuleDocs]) -> Iterator[Document]:
    definitions = public_definitions(modules)
    for name in native.STDLIB if domain == "stdlib" else native.PACKAGES.get(domain, ()):
        definitions += native.native_definitions(name)
    by_name: dict[str, Definition] = {}
    for definition in definitions:
        by_name.setdefault(definition.entries[0].name, definition)
    module_docs = {m.module: m.doc for m in modules}
    members: dict[str, list[Definition]] = {name: [] for name in module_docs}
    for definition in by_name.values():
        members.setdefault(definition.home, []).append(definition)
    for module in sorted(members):
        group = ".".join(module.split(".")[:GROUP_PARTS])
        entry = build_entry(
            module, kind="module", module=module, signature="", doc=module_docs.get(module, "")
        )
        # A page lists only what its own file defines: a held-out module must not show elsewhere.
        heads = [definition.entries[0] for definition in members[module]]
        page = module_document(entry, heads, domain=domain, group=group)
        if page and not is_private(module):
            yield page
        for definition in members[module]:
            yield definition_document(definition.entries, domain=domain, group=group)
