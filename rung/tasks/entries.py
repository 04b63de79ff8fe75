"""Documented entries: what the corpora say about functions, classes and methods."""

import ast
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rung.errors import DataError

PARTS = ("instruct", "text_only", "nowhere")
KINDS = ("function", "class", "method")
MAX_NAME = 60  # characters; longer dotted names eat the prompt of a small model
MAX_SIGNATURE = 110  # characters
MIN_SUMMARY, MAX_SUMMARY = 4, 24  # words
MAX_COPIES = 4

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
_PARAMETER = re.compile(r"\w+ ?\(`|\w+ :|.*\*optional\*")  # a docstring that begins with a list
_ROLE = re.compile(r":(?:\w+:)*\w+:`~?([^`]*)`")


@dataclass(frozen=True)
class Entry:
    """One documented thing and the part of the corpus it lies in.

    Example: Entry(name="json.dumps", kind="function", module="json", signature="(obj, *, indent)",
    summary="Serialize `obj` to a JSON formatted `str`.", doc="Serialize ...", domain="stdlib",
    part="instruct")
    signature: brackets and what is between them, "" when unknown or too long to ask for.
    summary: one clean sentence, "" when there is none that can be asked for.
    """

    name: str
    kind: str
    module: str
    signature: str
    summary: str
    doc: str
    domain: str
    part: str

    @property
    def short(self) -> str:
        """The name within its module: `dumps`, or `JSONEncoder.encode` for a method."""
        return self.name.removeprefix(self.module + ".")


@dataclass(frozen=True)
class Library:
    """All that the corpora document, in order of name.

    names: every full name, usable or not. identifiers: every word of every document that could be
    a name; what is not in it does not exist as far as the corpora know. ambiguous: short names
    that several modules have. unusable: entries left out by reason.
    """

    entries: tuple[Entry, ...]
    names: frozenset[str]
    identifiers: frozenset[str]
    ambiguous: frozenset[str]
    unusable: dict[str, int]

    def modules(self) -> list[str]:
        """Modules that text or instructions may use, in order."""
        return sorted({e.module for e in self.entries if e.part != "nowhere"})


def load_library(paths: Iterable[Path]) -> Library:
    """Entries of the documents.parquet files; the first of a repeated name counts.

    DataError when no document carries documented entries, as in a corpus of plain text.
    """
    import pyarrow.parquet as pq

    raws: dict[str, tuple[dict[str, str], str, str]] = {}
    names: set[str] = set()
    identifiers: set[str] = set()
    unusable: Counter[str] = Counter()
    paths = list(paths)
    for path in paths:
        for row in pq.read_table(path, columns=["text", "domain", "part", "meta"]).to_pylist():
            identifiers.update(_IDENTIFIER.findall(row["text"]))
            for raw in _raw_entries(row["meta"]):
                reason = "repeated_name" if raw["name"] in names else _why_unusable(raw)
                names.add(raw["name"])
                if reason:
                    unusable[reason] += 1
                else:
                    raws[raw["name"]] = (raw, row["domain"], row["part"])
    entries = _without_copies([_entry(*raws[name]) for name in sorted(raws)], unusable)
    if not entries:
        where = ", ".join(str(path) for path in paths)
        raise DataError(
            f"{where}: no documented functions or classes in the corpus, so there are no true "
            "answers to ask for; curate `installed` documentation, or use the `dataset` stage "
            "for conversations of your own"
        )
    found = Counter(e.short for e in entries if e.kind != "method")
    return Library(
        entries=tuple(entries),
        names=frozenset(names),
        identifiers=frozenset(identifiers),
        ambiguous=frozenset(short for short, count in found.items() if count > 1),
        unusable=dict(sorted(unusable.items())),
    )


def _without_copies(entries: list[Entry], unusable: Counter[str]) -> list[Entry]:
    """At most MAX_COPIES entries of equal last name and summary: hundreds of `forward` say one
    thing, and the same answer on both sides of a split would measure memory of the phrase."""
    kept, seen = [], Counter[tuple[str, str]]()
    for entry in entries:
        key = (entry.name.rpartition(".")[2], entry.summary)
        seen[key] += 1
        if entry.summary and seen[key] > MAX_COPIES:
            unusable["copied_documentation"] += 1
        else:
            kept.append(entry)
    return kept


def _raw_entries(meta: str | None) -> list[dict[str, str]]:
    if not meta:
        return []
    return json.loads(meta).get("entries") or []


def _why_unusable(raw: dict[str, str]) -> str:
    """The reason an entry is left out of the questions, or ""."""
    last = raw["name"].rpartition(".")[2]
    if raw["kind"] not in KINDS:
        return f"kind_{raw['kind']}"
    if last.startswith("_"):
        return "private_or_dunder"
    if len(raw["name"]) > MAX_NAME:
        return "long_name"
    if not raw["name"].startswith(raw["module"] + "."):
        return "name_outside_module"
    return ""


def _entry(raw: dict[str, str], domain: str, part: str) -> Entry:
    return Entry(
        name=raw["name"],
        kind=raw["kind"],
        module=raw["module"],
        signature=clean_signature(raw.get("signature") or ""),
        summary=clean_summary(raw.get("summary") or ""),
        doc=(raw.get("doc") or "").strip(),
        domain=domain,
        part=part,
    )


def clean_signature(signature: str) -> str:
    """Brackets and arguments on one line; "" when unknown, without arguments or over-long."""
    start = signature.find("(")
    text = " ".join(signature[start:].split()) if start >= 0 else ""
    if text in ("", "()") or len(text) > MAX_SIGNATURE or "..." in text:
        return ""
    return text if parse_arguments(text) is not None else ""


def clean_summary(summary: str) -> str:
    """One line without markup, with a full stop; "" when it is no plain sentence of fair length."""
    text = _ROLE.sub(r"`\1`", summary).replace("``", "`")
    text = " ".join(text.split())
    if not MIN_SUMMARY <= len(text.split()) <= MAX_SUMMARY:
        return ""
    if not text[0].isalpha() or ">>>" in text or not text.isascii() or _PARAMETER.match(text):
        return ""
    return text.rstrip(".:;,") + "."


def parse_arguments(signature: str) -> ast.arguments | None:
    """The arguments of "(a, b=1) -> int", or None where it is not Python."""
    try:
        node = ast.parse(f"def f{signature}: pass").body[0]
    except (SyntaxError, ValueError):
        return None
    return node.args if isinstance(node, ast.FunctionDef) else None


def defaults(signature: str) -> list[tuple[str, str]]:
    """(argument, default as source text) of every argument that has one, in order."""
    arguments = parse_arguments(signature)
    if arguments is None:
        return []
    positional = [*arguments.posonlyargs, *arguments.args]
    with_default = positional[len(positional) - len(arguments.defaults) :]
    found = [(a.arg, ast.unparse(d)) for a, d in zip(with_default, arguments.defaults, strict=True)]
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if default is not None:
            found.append((argument.arg, ast.unparse(default)))
    return found
