"""Docstrings given by a call: `add_docstr(torch.abs, "...")`, how C functions get theirs.

The text is often a template filled from tables of common argument descriptions, which are
computed by small calls of their own. These few forms are understood from the source alone;
anything else is left out, never run.
"""

import ast
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from rung.text.entry import Entry, build_entry

_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{(\w+)\}")


def documented_calls(tree: ast.Module, *, module: str) -> Iterator[Entry]:
    """Entries of top-level calls that attach a docstring to a C function or method."""
    tables: dict[str, Any] = {}
    package, _, stem = module.rpartition(".")
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            target = node.targets[0].id
            if _is_attach(node.value):
                yield from _entry(node.value, name=f"{module}.{target}", tables=tables)
            elif stem == "function_docs":  # mpmath keeps its docstrings in a module of strings
                yield from _build(f"{package}.{target}", doc=_value(node.value, {}))
            elif module.startswith("torch."):  # elsewhere the tables are never needed
                tables[target] = _value(node.value, tables)
        elif isinstance(node, ast.Expr) and _is_attach(node.value):
            yield from _entry(node.value, name=_target(node.value), tables=tables)


def _is_attach(node: ast.expr) -> bool:
    if not isinstance(node, ast.Call) or len(node.args) < 2:
        return False
    return ast.unparse(node.func).lstrip("_") in ("add_docstr", "add_docstr_all")


def _target(node: ast.expr) -> str:
    """The public name that a call documents; "" when the source does not say it plainly."""
    assert isinstance(node, ast.Call)
    first = node.args[0]
    if isinstance(first, ast.Constant):
        return f"torch.Tensor.{first.value!s}"  # add_docstr_all("abs", ...) means tensor methods
    return ast.unparse(first) if isinstance(first, ast.Attribute) else ""


def _entry(node: ast.expr, *, name: str, tables: dict[str, Any]) -> Iterator[Entry]:
    assert isinstance(node, ast.Call)
    yield from _build(name, doc=_value(node.args[1], tables))


def _build(name: str, *, doc: Any) -> Iterator[Entry]:
    if not name or any(part.startswith("_") for part in name.split(".")):
        return
    if not isinstance(doc, str) or not doc.strip():
        return
    owner = name.rpartition(".")[0]
    is_method = owner.rpartition(".")[2][:1].isupper()
    yield build_entry(
        name,
        kind="method" if is_method else "function",
        module=owner.rpartition(".")[0] if is_method else owner,
        signature="",
        doc=doc,
    )


def _value(node: ast.expr, tables: dict[str, Any]) -> Any:
    """The string or table an expression stands for, or None."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.Name):
        return tables.get(node.id)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _value(node.left, tables), _value(node.right, tables)
        both = isinstance(left, str) and isinstance(right, str)
        return left + right if both else None
    if isinstance(node, ast.Dict):
        keys = [k.value if isinstance(k, ast.Constant) else None for k in node.keys]
        return {k: _value(v, tables) for k, v in zip(keys, node.values, strict=True) if k}
    return _call(node, tables) if isinstance(node, ast.Call) else None


def _call(node: ast.Call, tables: dict[str, Any]) -> Any:
    if isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        template = _value(node.func.value, tables)
        words: dict[str, Any] = {}
        for keyword in node.keywords:
            value = _value(keyword.value, tables)
            words |= {keyword.arg: value} if keyword.arg else (value or {})
        return _fill(template, words) if isinstance(template, str) else None
    name = ast.unparse(node.func)
    if name == "parse_kwargs" and node.args:
        return _arguments(_value(node.args[0], tables) or "")
    if name == "merge_dicts":
        merged: dict[str, Any] = {}
        for arg in node.args:
            merged |= _value(arg, tables) or {}
        return merged
    return None


def _arguments(text: str) -> dict[str, str]:
    """ "input (Tensor): the input" -> {"input": "input (Tensor): the input"}, one a paragraph."""
    blocks = re.split(r"\n(?=\S)", textwrap.dedent(text).strip())
    return {block.split()[0]: block.strip() for block in blocks if block.strip()}


def _fill(template: str, words: dict[str, Any]) -> str:
    """`template` with its {words}; an unknown word leaves an empty place."""

    def replace(match: re.Match[str]) -> str:
        if match[0] in ("{{", "}}"):
            return match[0][0]
        return str(words.get(match[1]) or "")

    return _PLACEHOLDER.sub(replace, template)
