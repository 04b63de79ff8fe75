"""steps.c, compiled once on this machine: what a step does besides matrix products.

Where there is no C compiler steps run on torch's own operations, which is slower: `why_not` says
why. Who calls it: steps.py.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("steps.c")
COMPILERS = ("cc", "gcc", "clang")


def library() -> ctypes.CDLL:
    """The functions of steps.c. Ask `why_not` first."""
    loaded = _load()
    assert isinstance(loaded, ctypes.CDLL), loaded
    return loaded


def why_not() -> str:
    """Why steps cannot run in C on this machine, "" where they can: it compiles them."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else ""


@functools.cache
def _load() -> ctypes.CDLL | str:
    """The compiled library, or why there is none."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        return f"no C compiler ({', '.join(COMPILERS)}) is installed"
    native = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
    base = [compiler, "-O3", native, "-shared", "-fPIC", "-w"]
    # torch's threads are OpenMP's; a compiler without it still gives a library, for one thread
    reasons = []
    for words in ([*base, "-fopenmp"], base):
        try:
            return ctypes.CDLL(str(_compiled(words)))
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", None) or str(error)
            reasons.append(said.strip().splitlines()[0])
    return f"{compiler} does not compile it: {reasons[0]}"


def _compiled(words: list[str]) -> Path:
    """The library in the user's cache, made where it is not there yet."""
    parts = (SOURCE.read_text(encoding="utf-8"), *words, _processor())
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rung"
    library = cache / f"steps-{name}.so"
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            made = Path(scratch) / library.name
            subprocess.run(
                [*words, "-o", str(made), str(SOURCE), "-lm"],
                check=True,
                capture_output=True,
                text=True,
                timeout=120,
            )
            made.replace(library)  # at once: another process may be doing the same
    return library


def _processor() -> str:
    """What code for this processor depends on: a home may be shared by machines of many kinds."""
    described = Path("/proc/cpuinfo")
    if not described.exists():
        return platform.processor()
    lines = described.read_text(encoding="utf-8").splitlines()
    return "\n".join(
        sorted({x for x in lines if x.startswith(("model name", "flags", "Features"))})
    )
