"""What is documented about one Python name, and the plain text of it that a model reads."""

import inspect
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rung.text.record import Document

MAX_SUMMARY_CHARS = 300
MAX_MEMBERS = 100  # a module's list of members; longer ones say how many are left out

_CALL = re.compile(r"[\w.]+\(.*\)(\s*-+>.*)?")
_ROLE = re.compile(r":[\w:]+:`~?([^`<]+?)(?:\s*<[^`]*>)?`")
_SENTENCE_END = re.compile(
    r"(?<!\be\.g)(?<!\bi\.e)(?<!\bcf)(?<!\bvs)(?<!\betc)[.!?](?=\s+[A-Z`*(:]|$)"
)


@dataclass(frozen=True)
class Entry:
    """A documented name. kind: function | class | method | module | topic.

    aliases: other public names of the same thing, such as the module that defines it.

    Entry("json.dumps", "function", "json", "json.dumps(obj, *, skipkeys=False)",
          "Serialize obj to a JSON formatted str.", "Serialize obj ... (the whole docstring)")
    """

    name: str
    kind: str
    module: str
    signature: str
    summary: str
    doc: str
    aliases: tuple[str, ...] = ()


def build_entry(name: str, *, kind: str, module: str, signature: str, doc: str) -> Entry:
    """An entry with its docstring dedented, its summary cut out, and a leading call line moved.

    C functions carry their signature as the first line of the docstring ("abs(x, /) -> Tensor"):
    where `signature` is empty, that line becomes the signature.
    """
    doc = inspect.cleandoc(doc).strip()
    first, _, rest = doc.partition("\n")
    short = name.rpartition(".")[2]
    if not signature and re.fullmatch(
        rf"(\w+\.)*{re.escape(short)}\(.*\)(\s*-+>.*)?", first.strip()
    ):
        call = first.strip().replace("-->", "->")
        signature, doc = name + call[call.index("(") :], rest.strip().removeprefix("--").strip()
    return Entry(name, kind, module, signature, first_sentence(doc), doc)


def first_sentence(doc: str) -> str:
    """The first sentence of the first paragraph in plain words, on one line; "" for no text.

    A leading line that only repeats the call is passed over; markup roles and double backticks
    become single backticks.
    """
    paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", doc.strip())]
    paragraph = next((p for p in paragraphs if not _CALL.fullmatch(p)), "")
    paragraph = _ROLE.sub(r"`\1`", paragraph).replace("``", "`")
    end = _SENTENCE_END.search(paragraph)
    sentence = paragraph[: end.end()] if end else paragraph
    if len(sentence) > MAX_SUMMARY_CHARS:
        sentence = sentence[:MAX_SUMMARY_CHARS].rsplit(" ", 1)[0] + " ..."
    return sentence


def definition_document(entries: Sequence[Entry], *, domain: str, group: str) -> Document:
    """A function, or a class followed by its methods, as one document."""
    head = entries[0]
    parts = [_section(head, heading=f"{head.kind} {head.name}\nmodule {head.module}")]
    parts += [_section(entry, heading=f"{entry.kind} {entry.name}") for entry in entries[1:]]
    return _document(head, "\n\n".join(parts), entries, domain=domain, group=group)


def module_document(
    module: Entry, members: Sequence[Entry], *, domain: str, group: str
) -> Document | None:
    """A module's docstring and the list of its members; None when it says nothing."""
    lines = [f"- {m.name.rpartition('.')[2]}: {m.summary}" for m in members if m.summary]
    if not module.doc and len(lines) < 2:
        return None
    if len(lines) > MAX_MEMBERS:
        lines = [*lines[:MAX_MEMBERS], f"and {len(lines) - MAX_MEMBERS} more"]
    parts = [f"module {module.name}", module.doc, "\n".join(["Members", *lines]) if lines else ""]
    text = "\n\n".join(part for part in parts if part)
    return _document(module, text, [module], domain=domain, group=group, prefix="module ")


def topic_document(topic: str, text: str, *, domain: str) -> Document:
    """A language topic of pydoc; each is a group of its own."""
    entry = build_entry(topic, kind="topic", module="", signature="", doc=text)
    body = f"topic {topic}\n\n{entry.doc}"
    return _document(entry, body, [entry], domain=domain, group=f"topic {topic}", prefix="topic ")


def _section(entry: Entry, *, heading: str) -> str:
    call = entry.signature if entry.signature != entry.name else ""
    return "\n\n".join(part for part in (heading, call, entry.doc) if part)


def _document(
    head: Entry,
    text: str,
    entries: Sequence[Entry],
    *,
    domain: str,
    group: str,
    prefix: str = "",
) -> Document:
    records = [asdict(entry) for entry in entries if entry.doc]
    meta = {"entries": [r | {"aliases": list(r["aliases"])} for r in records]}
    return Document(prefix + head.name, text, domain, group, meta)
