"""Documentation of names implemented in C, which have no source to read: by import and inspect."""

import importlib
import inspect
import re
from types import ModuleType
from typing import Any

from rung.text.docstrings import Definition
from rung.text.entry import Entry, build_entry

_STDLIB = (
    "array atexit binascii builtins bz2 cmath codecs collections contextvars datetime decimal "
    "errno fcntl functools gc grp hashlib io itertools lzma marshal math mmap operator os pwd "
    "pyexpat re resource select signal socket sqlite3 ssl string struct sys syslog termios "
    "threading time tracemalloc types unicodedata warnings weakref zlib"
)
STDLIB = tuple(_STDLIB.split())
"""Modules of the standard library with documented C functions; importing them has no effects."""

PACKAGES = {"numpy": ("numpy",)}
"""Packages whose C functions get no docstring in Python source; the data engine imports them."""

_FUNCTIONS = ("builtin_function_or_method", "ufunc", "_ArrayFunctionDispatcher")
_METHODS = ("method_descriptor", "classmethod_descriptor", "getset_descriptor", "member_descriptor")


def native_definitions(module: str) -> list[Definition]:
    """Documented public C functions and classes of one module; [] where it cannot be imported."""
    try:
        source = importlib.import_module(module)
    except ImportError:  # not every build of Python has every module
        return []
    found: list[Definition] = []
    for name in sorted(vars(source)):
        value = vars(source)[name]
        if name.startswith("_") or not _is_native(value, name, source):
            continue
        entries = _class(value, module) if inspect.isclass(value) else _function(value, module)
        if entries:
            found.append(Definition(module, entries))
    return found


def _is_native(value: Any, name: str, source: ModuleType) -> bool:
    """True for what the module itself offers under its own name, not an alias or an import."""
    if getattr(value, "__name__", None) != name:
        return False
    if inspect.isclass(value):
        home = value.__module__ or ""
        is_heap_python = "__dict__" in vars(value) and "__weakref__" in vars(value)
        return home in (source.__name__, f"_{source.__name__}") and not is_heap_python
    home = getattr(value, "__module__", None) or source.__name__
    is_own = home.lstrip("_").partition(".")[0] in (source.__name__, "posix", "numpy", "thread")
    return type(value).__name__ in _FUNCTIONS and is_own


def _entry(value: Any, name: str, *, kind: str, module: str) -> Entry | None:
    doc = inspect.getdoc(value) if kind != "class" else vars(value).get("__doc__")
    if not isinstance(doc, str) or not doc.strip() or " at 0x" in doc:
        return None
    text_signature = getattr(value, "__text_signature__", None)
    if kind == "method" and type(value).__name__ in ("getset_descriptor", "member_descriptor"):
        signature = name
    elif text_signature and " at 0x" not in text_signature:
        signature = name + re.sub(r"\(\$(module|type)(, )?(/(, )?)?", "(", text_signature)
        signature = signature.replace("$", "")
    else:
        signature = ""
    return build_entry(name, kind=kind, module=module, signature=signature, doc=doc)


def _function(value: Any, module: str) -> tuple[Entry, ...]:
    name = f"{module}.{value.__name__}" if module != "builtins" else value.__name__
    entry = _entry(value, name, kind="function", module=module)
    return (entry,) if entry else ()


def _class(value: Any, module: str) -> tuple[Entry, ...]:
    name = f"{module}.{value.__name__}" if module != "builtins" else value.__name__
    head = _entry(value, name, kind="class", module=module)
    if head is None:
        return ()
    methods: list[Entry] = []
    for short, member in sorted(vars(value).items()):
        if short.startswith("_") or type(member).__name__ not in _METHODS:
            continue
        entry = _entry(member, f"{name}.{short}", kind="method", module=module)
        methods += [entry] if entry else []
    return (head, *methods)
