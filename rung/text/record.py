"""A document on its way into a corpus."""

from typing import Any, NamedTuple


class Document(NamedTuple):
    """One document before curation.

    id: unique in its corpus. domain: what figures are reported for ("stdlib", a package, a
    folder). group: the unit of splitting (a module, a file). meta: JSON.

    Document("json.dumps", "function json.dumps\\n...", "stdlib", "json", {"entries": [...]})
    """

    id: str
    text: str
    domain: str
    group: str
    meta: dict[str, Any]
