"""The model card: what is known of a model from its lineage, and what only its user can say."""

import json
from pathlib import Path
from typing import Any

from rung.store.adapter import base_id
from rung.store.artefact import Artefact
from rung.store.lineage import ancestors
from rung.store.store import Store

_DATA_KINDS = ("corpus", "dataset", "feedback")
_MOST = 12  # figures of one stage: a card is read by people


def write_card(
    store: Store, artefact: Artefact, folder: Path, *, title: str, form: str, base: str
) -> None:
    """README.md in `folder`. It names no path of this machine and no artefact's folder."""
    text = build_card(store, artefact, title=title, form=form, base=base)
    (folder / "README.md").write_text(text, encoding="utf-8", newline="\n")


def build_card(store: Store, artefact: Artefact, *, title: str, form: str, base: str = "") -> str:
    line = list(ancestors(store, artefact).values())
    roots = [node for node in line if node.stage == "import"]
    parts = [
        _front_matter(roots, form=form, base=base),
        f"# {title}\n\n{_what(store, artefact)}",
        "## How it was made\n\n" + _table(store, line),
        "## Data\n\n" + _data(store, line),
        "## Figures\n\n" + _figures(store, artefact),
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in _limits(store, artefact, line)),
        "## Licence\n\n"
        "FILL IN before you share this: the licence of the weights. It must fit the licence of the "
        f"model it started from{_starts(roots)} and of the data above.",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(roots: list[Artefact], *, form: str, base: str) -> str:
    lines = ["license: other # FILL IN", "pipeline_tag: text-generation"]
    lines.append(f"library_name: {'peft' if form == 'adapter' else 'transformers'}")
    hub = [root.config["source"] for root in roots if root.notes.get("hub")]
    if hub or (base and not Path(base).is_absolute()):
        lines.append(f"base_model: {json.dumps(base or hub[0])}")
    return "---\n" + "\n".join(lines) + "\n---"


def _what(store: Store, artefact: Artefact) -> str:
    node = artefact
    while (below := base_id(node.path)) is not None:
        node = store.get(below)
    config = json.loads(node.file("config.json").read_text(encoding="utf-8"))
    size = node.files["model.safetensors"].size
    each = {"float32": 4, "float16": 2, "bfloat16": 2}.get(config.get("dtype", ""), 4)
    name = (config.get("architectures") or ["a language model"])[0]
    context = config.get("max_position_embeddings") or config.get("n_positions") or "?"
    adapter = " with an adapter on it" if node is not artefact else ""
    return (
        f"{name}{adapter}, about {size / each / 1e6:,.1f} M parameters, context {context} tokens, "
        f"vocabulary {config.get('vocab_size', '?')}. Made with Rung; artefact {artefact.short_id}."
        "\nThe chat template is in the tokenizer: use apply_chat_template, and add no begin token "
        "of your own to what it writes."
    )


def _called(store: Store, node: Artefact) -> str:
    names = store.names_of(node)
    return names[0] if names else node.short_id


def _table(store: Store, line: list[Artefact]) -> str:
    rows = ["| step | stage | gives | from | id |", "|---|---|---|---|---|"]
    for node in line:
        origin = ", ".join(_parent(store, id) for id in node.parents.values())
        origin = origin or _source(node)
        row = (_called(store, node), node.stage, node.kind, origin or "-", node.short_id)
        rows.append("| " + " | ".join(_cell(value) for value in row) + " |")
    return "\n".join(rows)


def _parent(store: Store, id: str) -> str:
    return _called(store, store.get(id))


def _source(node: Artefact) -> str:
    """The last part of a path, or a hub id in full: the folders of a machine are nobody's."""
    source = str(node.config.get("source", "")) if node.stage == "import" else ""
    return source if node.notes.get("hub") else source.rstrip("/").rpartition("/")[2]


def _data(store: Store, line: list[Artefact]) -> str:
    found = [node for node in line if node.kind in _DATA_KINDS]
    if not found:
        return "None of Rung's: the model is as it was imported. See its makers' card."
    lines = []
    for node in found:
        counts = ", ".join(_flat(node.notes.get("counts") or {})) or "no counts noted"
        lines.append(f"- **{_called(store, node)}** ({node.kind}, {node.stage}): {counts}")
    return "\n".join(lines)


def _figures(store: Store, artefact: Artefact) -> str:
    blocks = []
    own = _flat(artefact.notes.get("figures") or {})
    if own:
        blocks.append(f"Of the last stage ({artefact.stage}): " + "; ".join(own) + ".")
    for node in store.artefacts():
        if node.kind == "evaluation" and node.parents.get("model") == artefact.id:
            figures = _flat(node.notes.get("figures") or {})
            blocks.append(f"Of evaluation {_called(store, node)}: " + "; ".join(figures) + ".")
    return "\n\n".join(blocks) or "None: no evaluation of this very model is in the store."


def _flat(values: Any, prefix: str = "") -> list[str]:
    """`name: value` of the numbers and short texts inside, at most a dozen."""
    found: list[str] = []
    for key, value in values.items() if isinstance(values, dict) else ():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, bool | int) or (isinstance(value, str) and len(value) < 40):
            found.append(f"{prefix}{key}: {value}")
        elif isinstance(value, float):
            found.append(f"{prefix}{key}: {value:.4g}")
    return found[:_MOST]


def _limits(store: Store, artefact: Artefact, line: list[Artefact]) -> list[str]:
    limits = [
        "It writes what is likely, not what is true; check what matters.",
        "Nobody has tested it for harm beyond the figures above.",
    ]
    if any(node.stage == "import" for node in line):
        limits.append("What the imported model was trained on is not known here; see its card.")
    simulated = [node for node in line if node.kind == "feedback" and node.stage == "collect"]
    if simulated:
        limits.append("Preferences came from a simulated annotator, not from people.")
    if any(node.stage == "dataset" for node in line):
        limits.append("It learned from files of its user; they may hold what must not be repeated.")
    return limits


def _starts(roots: list[Artefact]) -> str:
    named = sorted({_source(root) for root in roots})
    return f" ({', '.join(named)})" if named else ""


def _cell(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")
