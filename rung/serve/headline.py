"""The one line that says most about an artefact, from its notes; for boxes and tables."""

from collections.abc import Callable, Mapping
from typing import Any

from rung.evals.numerals import amount
from rung.serve.show import number, size
from rung.store.artefact import Artefact
from rung.store.catalogue import View

_TAUGHT = ("sft", "dpo", "ipo", "apo", "simpo", "orpo", "kto", "ppo", "grpo")


def headline(artefact: Artefact, view: View) -> str:
    """ "1.03 bits per byte", "13,876 rows", ...; "" where the notes say nothing."""
    if artefact.kind == "model":
        return _of_model(artefact, view)
    figures = {**(artefact.notes.get("figures") or {})}
    counts = {**(artefact.notes.get("counts") or {})}
    found = _BY_KIND.get(artefact.kind, _nothing)(figures, counts)
    return found or ""


def _of_model(model: Artefact, view: View) -> str:
    """What its evaluations say, else what its training saw last, else its size."""
    best: Mapping[str, Any] = {}
    for role, child in view.children(model.id):
        figures = child.notes.get("figures") or {}
        if role == "model" and child.stage == "evaluate" and len(figures) > len(best):
            best = figures
    said = _of_evaluation(best, {}, taught=model.stage in _TAUGHT)
    if said:
        return said
    last = model.notes.get("last") or {}
    for key, unit in (("heldout_bpb", "bits per byte"), ("heldout_loss", "nats per token")):
        if key in last:
            return f"{number(last[key])} {unit}"
    figures, counts = model.notes.get("figures") or {}, model.notes.get("counts") or {}
    if isinstance(figures.get("after/utility"), float):
        return f"utility {number(round(figures['after/utility'], 3))}"
    if isinstance(share := figures.get("heldout/rewards/accuracies"), float):
        return f"{100 * share:.0f} % of pairs right"
    parameters = figures.get("num_parameters") or counts.get("parameters")
    return f"{amount(float(parameters))} parameters" if parameters else ""


def _of_evaluation(
    figures: Mapping[str, Any], counts: Mapping[str, Any], *, taught: bool = False
) -> str:
    if taught and isinstance(figures.get("utility"), float):
        return f"utility {number(round(figures['utility'], 3))}"
    bits = [value for name, value in figures.items() if name.startswith("bpb/")]
    if bits:
        return f"{number(round(bits[0], 3))} bits per byte"
    if isinstance(figures.get("utility"), float):
        return f"utility {number(round(figures['utility'], 3))}"
    return ""


def _of_corpus(figures: Mapping[str, Any], counts: Mapping[str, Any]) -> str:
    if "documents" not in counts:
        return ""
    return f"{size(counts.get('bytes') or 0)}, {number(counts['documents'])} texts"


def _of_tokenizer(figures: Mapping[str, Any], counts: Mapping[str, Any]) -> str:
    return f"{number(figures['vocab_size'])} tokens" if "vocab_size" in figures else ""


def _of_rows(figures: Mapping[str, Any], counts: Mapping[str, Any]) -> str:
    rows = sum(v for n, v in figures.items() if n in ("num_train", "num_heldout", "num_prompts"))
    return f"{number(rows)} rows" if rows else ""


def _of_feedback(figures: Mapping[str, Any], counts: Mapping[str, Any]) -> str:
    return f"{number(counts['rankings'])} rankings" if "rankings" in counts else ""


def _of_reward(figures: Mapping[str, Any], counts: Mapping[str, Any]) -> str:
    share = figures.get("pair_accuracy")
    return f"{100 * share:.0f} % of pairs right" if isinstance(share, float) else ""


def _of_classifier(figures: Mapping[str, Any], counts: Mapping[str, Any]) -> str:
    share = figures.get("accuracy", figures.get("macro_f1"))
    return f"{100 * share:.1f} % right" if isinstance(share, float) else ""


def _nothing(figures: Mapping[str, Any], counts: Mapping[str, Any]) -> str:
    return ""


_BY_KIND: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any]], str]] = {
    "evaluation": _of_evaluation,
    "corpus": _of_corpus,
    "tokenizer": _of_tokenizer,
    "dataset": _of_rows,
    "labels": _of_rows,
    "feedback": _of_feedback,
    "reward-model": _of_reward,
    "classifier": _of_classifier,
}
