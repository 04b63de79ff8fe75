"""The artefacts of a recipe with their lineage: which evaluation is of which model.

Everything is found by stage command and parents, never by the names that a recipe gives.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from rung.store.artefact import Artefact

PREFERRED = ("dpo", "ipo", "apo", "simpo", "orpo", "kto")
"""Stages that learn from judged answers directly."""
ALIGNED = (*PREFERRED, "ppo", "grpo")
"""Stages that are judged by a win rate against the model they start from."""


class Evaluation:
    """An evaluation artefact, its figures, and its items on demand."""

    def __init__(self, artefact: Artefact) -> None:
        self.artefact = artefact
        self.result: dict[str, Any] = json.loads(
            artefact.file("evaluation.json").read_text(encoding="utf-8")
        )

    @cached_property
    def items(self) -> list[dict[str, Any]]:
        lines = self.artefact.file("items.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.strip()]

    @property
    def answers(self) -> list[dict[str, Any]]:
        """Items of the questions."""
        return [item for item in self.items if item["suite"] == "instruct"]

    def text_items(self, corpus: str) -> dict[str, dict[str, Any]]:
        """Items of one corpus's held-out documents by document id."""
        return {
            item["id"]: item
            for item in self.items
            if item["suite"] == "likelihood" and item["corpus"] == corpus
        }

    def bpb(self, corpus: str | None) -> float | None:
        """Bits per byte on one corpus; None where it was not measured."""
        part = self.result.get("likelihood", {}).get(corpus)
        return None if part is None else float(part["total"]["value"])

    def total(self, name: str) -> float | None:
        """A figure over all questions, such as stop_rate; None where it was not measured."""
        estimate = self.result.get("instruct", {}).get("totals", {}).get(name)
        return None if estimate is None else float(estimate["value"])


class Ladder:
    """Artefacts by entry name, parents before children."""

    def __init__(self, names: Mapping[str, Artefact]) -> None:
        self.by_id: dict[str, Artefact] = {a.id: a for a in names.values()}
        self._name: dict[str, str] = {}
        for name, artefact in names.items():
            self._name.setdefault(artefact.id, name)
        self.entries = self._ordered(names)
        self._evaluations: dict[str, Evaluation] = {}

    def _ordered(self, names: Mapping[str, Artefact]) -> dict[str, Artefact]:
        done: dict[str, Artefact] = {}

        def visit(name: str, artefact: Artefact) -> None:
            if name in done:
                return
            for parent in artefact.parents.values():
                if parent in self._name and self._name[parent] != name:
                    visit(self._name[parent], self.by_id[parent])
            done[name] = artefact

        for name, artefact in names.items():
            visit(name, artefact)
        return done

    def name(self, id: str | None) -> str:
        """The entry name of an artefact, or the start of its id when it is none of ours."""
        return "" if id is None else self._name.get(id, id[:12])

    def of_stage(self, *commands: str) -> list[Artefact]:
        """Artefacts made by these stages, in order, each once."""
        return [
            artefact
            for name, artefact in self.entries.items()
            if artefact.stage in commands and self._name[artefact.id] == name
        ]

    @property
    def models(self) -> list[Artefact]:
        """Language models in order (a reward model is none)."""
        kinds = [a for n, a in self.entries.items() if self._name[a.id] == n]
        return [artefact for artefact in kinds if artefact.kind == "model"]

    def parent(self, artefact: Artefact, role: str) -> Artefact | None:
        return self.by_id.get(artefact.parents.get(role, ""))

    def evaluation(self, model: Artefact | None) -> Evaluation | None:
        """The `evaluate` artefact of a model that measured most; None without one."""
        if model is None:
            return None
        found = [a for a in self.of_stage("evaluate") if a.parents.get("model") == model.id]
        read = [self._read(artefact) for artefact in found]
        return max(read, key=lambda e: len(e.result), default=None)

    def ngram(self, model: Artefact) -> Evaluation | None:
        """The n-gram evaluation over the tokens of a model."""
        found = [a for a in self.of_stage("ngram") if a.parents.get("model") == model.id]
        return self._read(found[0]) if found else None

    def _read(self, artefact: Artefact) -> Evaluation:
        if artefact.id not in self._evaluations:
            self._evaluations[artefact.id] = Evaluation(artefact)
        return self._evaluations[artefact.id]

    def text_history(self, model: Artefact) -> list[str]:
        """Ids of the corpora a model and its ancestors were trained on, oldest first."""
        above = self.parent(model, "model")
        history = self.text_history(above) if above is not None else []
        own = model.parents.get("corpus")
        return history if own is None or own in history else [*history, own]


def first_of_each(artefacts: Sequence[Artefact], ladder: Ladder) -> list[tuple[str, Artefact]]:
    """(prefix of figures, artefact): the stage command for its first artefact, then entry names."""
    taken: set[str] = set()
    result = []
    for artefact in artefacts:
        prefix = artefact.stage if artefact.stage not in taken else ladder.name(artefact.id)
        taken.add(artefact.stage)
        result.append((prefix, artefact))
    return result
