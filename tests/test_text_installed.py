"""Documentation of installed packages, against what importing them says."""

import importlib
import inspect
import random
import re
import subprocess
import sys
import warnings

import pytest

from rung.errors import DataError
from rung.text import native
from rung.text.installed import Installed, installed_fingerprint, read_installed


@pytest.fixture(scope="module")
def stdlib():
    return read_installed(Installed()).documents


def entries_of(documents):
    return [entry for document in documents for entry in document.meta["entries"]]


def resolve(name):
    """The object of a dotted name, or None."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # modules that are about to go
                found = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            found = inspect.getattr_static(found, part, None)
        return found
    return None


def test_standard_library_is_large_and_unique(stdlib):
    assert sum(len(d.text) for d in stdlib) > 1_500_000
    assert len({d.id for d in stdlib}) == len(stdlib)
    ids = {d.id for d in stdlib}
    wanted = {"json.dumps", "math.sin", "os.path.join", "str", "module json", "topic assignment"}
    assert wanted <= ids
    assert not any("._" in d.id or d.group.split(".")[0] == "test" for d in stdlib)
    assert len({d.group for d in stdlib}) > 300


def test_names_and_signatures_are_true(stdlib):
    """Independent reference: import and inspect a sample of what was read from source."""
    modules = [
        "json",
        "textwrap",
        "copy",
        "glob",
        "statistics",
        "fractions",
        "shlex",
        "difflib",
        "os.path",
    ]
    found = [e for e in entries_of(stdlib) if e["module"] in modules and e["kind"] == "function"]
    assert len(found) > 50
    for entry in found:
        real = resolve(entry["name"])
        assert real is not None, entry["name"]
        assert inspect.getdoc(real).split()[-5:] == entry["doc"].split()[-5:], entry["name"]
        names = list(inspect.signature(real).parameters)
        inside = entry["signature"].removeprefix(entry["name"])
        assert re.findall(r"(?:[(,] ?\*{0,2})(\w+)", inside)[: len(names)] == names, inside


def test_a_random_sample_of_names_exists(stdlib):
    skipped = ("msilib", "winreg", "asyncio", "multiprocessing", "tkinter", "ctypes")
    skipped = (*skipped, "curses", "dbm", "ntpath", "nturl2path", "encodings", "_", "test")
    names = [
        e["name"]
        for e in entries_of(stdlib)
        if e["kind"] in ("function", "class") and e["module"] and e["module"] != "builtins"
    ]
    sample = random.Random(0).sample([n for n in names if not n.startswith(skipped)], 200)
    missing = [name for name in sample if resolve(name) is None]
    assert len(missing) <= 6, missing  # defined under a condition that this platform lacks


def test_native_functions():
    found = {d.entries[0].name: d.entries for d in native.native_definitions("math")}
    assert found["math.sin"][0].signature == "math.sin(x, /)"
    assert all(name.startswith("math.") for name in found)
    builtins = {d.entries[0].name: d.entries for d in native.native_definitions("builtins")}
    assert "str.upper" in [e.name for e in builtins["str"]]
    assert native.native_definitions("no_such_module_at_all") == []


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose files fail when they are imported."""
    root = tmp_path / "rungdemo"
    (root / "tests").mkdir(parents=True)
    (root / "deep" / "er").mkdir(parents=True)
    (root / "__init__.py").write_text('"""Demo."""\nfrom ._core import work\nraise SystemExit\n')
    (root / "_core.py").write_text('def work(x):\n    """Works."""\ndef idle():\n    """Idle."""\n')
    (root / "tests" / "test_it.py").write_text('def test():\n    """No."""\n')
    (root / "broken.py").write_text('def f(:\n    """No."""\n')
    for folder in ("deep", "deep/er"):
        (root / folder / "__init__.py").write_text("")
    (root / "deep" / "er" / "a.py").write_text('def f():\n    """F."""\ndef g():\n    """G."""\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return "rungdemo"


def test_a_package_is_read_and_not_imported(package):
    docs = read_installed(Installed(stdlib=False, packages=(package,)))
    assert package not in sys.modules
    assert [(d.id, d.group) for d in docs.documents] == [
        ("module rungdemo", "rungdemo"),
        ("rungdemo.work", "rungdemo._core"),
        ("module rungdemo.deep.er.a", "rungdemo.deep.er"),
        ("rungdemo.deep.er.a.f", "rungdemo.deep.er"),
        ("rungdemo.deep.er.a.g", "rungdemo.deep.er"),
    ]
    assert "Works" not in docs.documents[0].text  # another group's text must not leak
    assert docs.skipped == {"does not parse": ["rungdemo.broken"]}


def test_missing_packages_are_named(package):
    with pytest.raises(DataError, match=r"not installed: nonesuch_one, nonesuch_two; .*optional"):
        read_installed(Installed(stdlib=False, packages=("nonesuch_one", package, "nonesuch_two")))
    docs = read_installed(Installed(stdlib=False, optional=(package, "nonesuch_one")))
    assert docs.skipped["not installed"] == ["nonesuch_one"]
    assert len(docs.documents) == 5


def test_fingerprint_follows_versions(package):
    before = installed_fingerprint(Installed(packages=("numpy", package), optional=("nonesuch",)))
    assert before["nonesuch"] == "none"
    assert before["numpy"][0].isdigit()


def test_processes_give_the_same_documents():
    """More files than one process would be used for, so that the pool really runs."""
    code = (
        "import hashlib\n"
        "from rung.text.installed import Installed, read_installed\n"
        "source = Installed(stdlib=False, packages=('networkx',))\n"
        "if __name__ == '__main__':\n"
        "    a, b = (read_installed(source, workers=n).documents for n in (0, 2))\n"
        "    assert len(a) > 1000 and a == b, 'differ'\n"
    )
    pytest.importorskip("networkx")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
