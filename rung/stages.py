"""The one table of stages: command, module, inputs by role, output kind."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True)
class Role:
    """How a stage takes one input: one, one at most ("?"), one or more ("+"), any number ("*")."""

    name: str
    kind: str
    many: bool
    required: bool


@dataclass(frozen=True)
class Stage:
    """A row of the table.

    inputs: role -> kind of artefact, with "?", "+" or "*" at the end (see `Role`).
    version: raised when the same config and parents give other bytes than before, so that
    artefacts of the older code are not taken for results of the newer one.
    """

    command: str
    module: str
    inputs: Mapping[str, str]
    output: str
    help: str
    version: int = 1

    def roles(self) -> list[Role]:
        return [
            Role(
                name=name,
                kind=spec.rstrip("?+*"),
                many=spec[-1] in "+*",
                required=spec[-1] not in "?*",
            )
            for name, spec in self.inputs.items()
        ]

    def load(self) -> ModuleType:
        """The stage's module: Config, run, perhaps estimate and fingerprint. May pull torch."""
        return importlib.import_module(self.module)


_OBJECTIVES = "rung.train.objectives."

MERGE = Stage(
    "merge",
    "rung.model.merge",
    {"model": "model"},
    "model",
    "Merge an adapter into its base.",
)
"""Not in the table: a command of its own; no recipe needs it, since every stage reads adapters."""

STAGES: Mapping[str, Stage] = {
    stage.command: stage
    for stage in (
        Stage(
            "curate",
            "rung.text.curate",
            {},
            "corpus",
            "Read text, drop what is bad by named reasons, remove duplicates, redact.",
        ),
        Stage(
            "tokenizer",
            "rung.tokens.tokenizer",
            {"corpora": "corpus+"},
            "tokenizer",
            "Train a byte-level BPE tokenizer with role tokens and a chat template.",
        ),
        Stage(
            "pretrain",
            _OBJECTIVES + "pretrain",
            {"corpus": "corpus", "tokenizer": "tokenizer"},
            "model",
            "Train a language model from random weights on next-token prediction.",
        ),
        Stage(
            "import",
            "rung.exchange.importing",
            {},
            "model",
            "Make any open model an artefact: a folder, a GGUF or llama2.c file, a hub id.",
        ),
        Stage(
            "continue",
            _OBJECTIVES + "continued",
            {"model": "model", "corpus": "corpus", "replay": "corpus?"},
            "model",
            "Continue pre-training on a new domain, with replay of old text.",
        ),
        Stage(
            "instruct",
            "rung.tasks.instruct",
            {"corpora": "corpus+"},
            "dataset",
            "Derive instructions with known answers from documentation.",
        ),
        Stage(
            "dataset",
            "rung.tasks.files",
            {},
            "dataset",
            "Import conversations or prompt/completion files of your own.",
            version=2,  # rows are called by their source, no longer all "conversation"
        ),
        Stage(
            "labels",
            "rung.tasks.labels",
            {},
            "labels",
            "Import texts with labels of your own, for classification.",
        ),
        Stage(
            "sft",
            _OBJECTIVES + "sft",
            {"model": "model", "dataset": "dataset"},
            "model",
            "Fine-tune on conversations; the loss is on assistant tokens only.",
        ),
        Stage(
            "classify",
            _OBJECTIVES + "classify",
            {"model": "model", "labels": "labels"},
            "classifier",
            "Train a classifier on labelled texts, one or several labels each.",
        ),
        Stage(
            "collect",
            "rung.train.collect",
            {"model": "model", "dataset": "dataset"},
            "feedback",
            "Sample answers and let a simulated annotator rank them.",
        ),
        Stage(
            "feedback",
            "rung.feedback.files",
            {},
            "feedback",
            "Import files of human preferences.",
        ),
        Stage(
            "reward",
            _OBJECTIVES + "reward",
            {"model": "model", "feedback": "feedback"},
            "reward-model",
            "Train a reward model on rankings.",
            version=2,
        ),
        Stage(
            "dpo",
            _OBJECTIVES + "dpo",
            {"model": "model", "feedback": "feedback"},
            "model",
            "Align to preferences directly, without a reward model or sampling.",
        ),
        Stage(
            "ipo",
            _OBJECTIVES + "ipo",
            {"model": "model", "feedback": "feedback"},
            "model",
            "As DPO, with a target for the lead: for labels that are always the same.",
        ),
        Stage(
            "apo",
            _OBJECTIVES + "apo",
            {"model": "model", "feedback": "feedback"},
            "model",
            "As DPO, with an anchor: preferred answers rise, the others fall.",
        ),
        Stage(
            "simpo",
            _OBJECTIVES + "simpo",
            {"model": "model", "feedback": "feedback"},
            "model",
            "As DPO, per token and without a reference.",
        ),
        Stage(
            "orpo",
            _OBJECTIVES + "orpo",
            {"model": "model", "feedback": "feedback"},
            "model",
            "Fine-tune on preferred answers and align in one, from a base model.",
        ),
        Stage(
            "kto",
            _OBJECTIVES + "kto",
            {"model": "model", "feedback": "feedback"},
            "model",
            "Align to thumbs up and down on single answers.",
        ),
        Stage(
            "ppo",
            _OBJECTIVES + "ppo",
            {"model": "model", "reward": "reward-model", "dataset": "dataset"},
            "model",
            "Align by reinforcement learning with a value function.",
        ),
        Stage(
            "grpo",
            _OBJECTIVES + "grpo",
            {"model": "model", "reward": "reward-model", "dataset": "dataset"},
            "model",
            "Align by reinforcement learning with the group mean as baseline.",
        ),
        Stage(
            "ngram",
            "rung.evals.ngram",
            {"corpus": "corpus", "tokenizer": "tokenizer", "model": "model"},
            "evaluation",
            "Score a 5-gram model over the same tokens, to stand beside the base model.",
        ),
        Stage(
            "evaluate",
            "rung.evals.evaluate",
            {
                "model": "model",
                "corpora": "corpus*",
                "dataset": "dataset?",
                "baseline": "model?",
                "reward": "reward-model?",
            },
            "evaluation",
            "Measure a model on the fixed held-out suites.",
        ),
    )
}
