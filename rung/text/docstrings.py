"""Documented names of one Python source file, read by ast; nothing is imported or run."""

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from rung.text.docstring_calls import documented_calls
from rung.text.entry import Entry, build_entry

MAX_SIGNATURE_CHARS = 400

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Definition(NamedTuple):
    """entries: a function alone, or a class followed by its documented methods; never empty.

    home: the module whose source has it, which may be private. The entries carry public names.
    """

    home: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class ModuleDocs:
    """What one file documents, under the name of the file's own module.

    imports: (module, name or "*", name here) of every `from ... import` that re-exports: those of
    a package, those listed in `__all__`, and stars. exports: `__all__` where it is a plain list.
    """

    module: str
    doc: str
    definitions: tuple[Definition, ...]
    imports: tuple[tuple[str, str, str], ...] = ()
    exports: frozenset[str] | None = None


def read_docstrings(source: str, *, module: str, is_package: bool) -> ModuleDocs:
    """Documented public names of a source file. SyntaxError and ValueError pass through."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        tree = ast.parse(source)
    found: dict[str, tuple[Entry, ...]] = {}
    for node in _top_level(tree.body):
        if isinstance(node, ast.ClassDef):
            found.setdefault(node.name, _class(node, module))
        elif isinstance(node, Function) and not _is_decorated(node, "overload"):
            found.setdefault(node.name, _function(node, f"{module}.{node.name}", module))
    for entry in documented_calls(tree, module=module):
        found.setdefault(entry.name, (entry,))
    exports = _exports(tree, source)
    imports = tuple(
        (source, name, here)
        for source, name, here in _imports(tree, module=module, is_package=is_package)
        if is_package or name == "*" or (exports is not None and here in exports)
    )
    public = {name: entries for name, entries in found.items() if entries and name[0] != "_"}
    definitions = tuple(Definition(module, entries) for entries in public.values())
    return ModuleDocs(module, ast.get_docstring(tree) or "", definitions, imports, exports)


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.If):
            yield from _top_level(node.body)
            yield from _top_level(node.orelse)
        elif isinstance(node, ast.Try):
            yield from _top_level(node.body)
            for handler in node.handlers:
                yield from _top_level(handler.body)
        else:
            yield node


def _is_decorated(node: Function | ast.ClassDef, name: str) -> bool:
    for decorator in node.decorator_list:
        target = decorator.func if isinstance(decorator, ast.Call) else decorator
        if name == (
            target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")
        ):
            return True
    return False


def _function(
    node: Function, name: str, module: str, *, kind: str = "function"
) -> tuple[Entry, ...]:
    doc = ast.get_docstring(node)
    if not doc:
        return ()
    signature = name if _is_decorated(node, "property") else _signature(name, node)
    return (build_entry(name, kind=kind, module=module, signature=signature, doc=doc),)


def _class(node: ast.ClassDef, module: str) -> tuple[Entry, ...]:
    name = f"{module}.{node.name}"
    members = {
        member.name: member
        for member in reversed(node.body)  # the first definition of a name wins
        if isinstance(member, Function) and not _is_decorated(member, "overload")
    }
    init = members.get("__init__")
    doc = ast.get_docstring(node) or (ast.get_docstring(init) if init else None) or ""
    methods: list[Entry] = []
    for member in reversed(members.values()):
        is_alternative = _is_decorated(member, "setter") or _is_decorated(member, "deleter")
        if not member.name.startswith("_") and not is_alternative:
            methods += _function(member, f"{name}.{member.name}", module, kind="method")
    if not doc and not methods:
        return ()
    signature = _class_signature(name, node, init)
    head = build_entry(name, kind="class", module=module, signature=signature, doc=doc)
    return (head, *methods)


def _class_signature(name: str, node: ast.ClassDef, init: Function | None) -> str:
    if init is not None:
        return _signature(name, init, skip_first=True, with_return=False)
    if _is_decorated(node, "dataclass"):
        fields = [ast.unparse(item) for item in node.body if isinstance(item, ast.AnnAssign)]
        return _cut(name, fields)
    return name


def _signature(
    name: str, node: Function, *, skip_first: bool = False, with_return: bool = True
) -> str:
    args = node.args
    if skip_first and (args.posonlyargs or args.args):
        first = args.posonlyargs or args.args
        first.pop(0)
        del args.defaults[: max(0, len(args.defaults) - len(args.posonlyargs + args.args))]
    returns = f" -> {ast.unparse(node.returns)}" if with_return and node.returns else ""
    full = f"{name}({ast.unparse(args)}){returns}"
    if len(full) <= MAX_SIGNATURE_CHARS:
        return full
    for arg in [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]:
        if arg is not None:
            arg.annotation = None
    return _cut(name, ast.unparse(args).split(", "))


def _cut(name: str, arguments: list[str]) -> str:
    """A call of as many arguments as fit; what is left out shows as "..."."""
    kept: list[str] = []
    for argument in arguments:
        if len(name) + sum(map(len, kept)) + len(argument) > MAX_SIGNATURE_CHARS:
            return f"{name}({', '.join([*kept, '...'])})"
        kept.append(argument)
    return f"{name}({', '.join(kept)})"


def _imports(tree: ast.Module, *, module: str, is_package: bool) -> Iterator[tuple[str, str, str]]:
    package = module if is_package else module.rpartition(".")[0]
    for node in _top_level(tree.body):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = package
        for _ in range(node.level - 1):
            base = base.rpartition(".")[0]
        source = ".".join(p for p in (base if node.level else "", node.module or "") if p)
        for alias in node.names:
            yield source, alias.name, alias.asname or alias.name


def _exports(tree: ast.Module, source: str) -> frozenset[str] | None:
    if "__all__" not in source:
        return None
    names: set[str] = set()
    literal_uses = 0
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            value = getattr(node, "value", None)
            if not isinstance(value, ast.List | ast.Tuple):
                return None
            names |= {str(e.value) for e in value.elts if isinstance(e, ast.Constant)}
            literal_uses += 1
    uses = len(re.findall(r"\b__all__\b", source))  # more uses: it is also changed by code
    return frozenset(names) if literal_uses and uses == literal_uses else None
