"""The figures of a ladder for machines: what `rung report --json` prints."""

from collections.abc import Mapping
from typing import Any

from rung.evals.changes import bits_difference, versus_parent
from rung.evals.cost import cost_of
from rung.evals.ladder import ALIGNED, Evaluation, Ladder, first_of_each
from rung.store.artefact import Artefact

Figures = dict[str, Any]

_PROMISED = ("dpo", "ppo", "grpo")
"""Stages of the quickstart, whose figures are named also where they were not run."""


def collect_figures(names: Mapping[str, Artefact]) -> dict[str, Any]:
    """{"stages": [one record an entry], "figures": {name: number or None}}.

    names: artefacts by entry name. A figure that was not measured is None rather than missing, so
    that a reader can tell "not measured" from a name it has wrong.
    """
    ladder = Ladder(names)
    figures: Figures = {
        "total_seconds": round(sum(_unique_seconds(ladder)), 3),
        "peak_rss_gb": max(
            (_number(a.notes, "peak_rss_gb") or 0.0 for a in names.values()), default=0.0
        ),
    }
    figures |= _pretrain(ladder)
    figures |= _continue(ladder)
    figures |= _sft(ladder)
    figures |= _classify(ladder)
    figures |= _reward(ladder)
    for command in _PROMISED:
        figures |= dict.fromkeys([f"{command}.{name}" for name in _ALIGNED_FIGURES])
    for prefix, model in first_of_each(ladder.of_stage(*ALIGNED), ladder):
        figures |= _aligned(ladder, prefix, model)
    return {"stages": [_stage(name, a) for name, a in ladder.entries.items()], "figures": figures}


def _unique_seconds(ladder: Ladder) -> list[float]:
    """Seconds of each artefact once, though two entries may share one."""
    return [cost_of(artefact).seconds for artefact in ladder.by_id.values()]


def _stage(name: str, artefact: Artefact) -> dict[str, Any]:
    cost = cost_of(artefact)
    return {
        "name": name,
        "stage": artefact.stage,
        "kind": artefact.kind,
        "id": artefact.id,
        "seconds": cost.seconds,
        "peak_rss_gb": cost.peak_rss_gb,
        "tokens": cost.tokens,
        "flop": cost.flop,
        "usd": cost.usd,
        "tokens_per_s": cost.tokens_per_s,
        "mfu": cost.mfu,
        "figures": dict(artefact.notes.get("figures") or {}),
    }


def _number(source: Mapping[str, Any], key: str) -> float | None:
    value = source.get(key)
    return float(value) if isinstance(value, (int, float)) else None


def _bpb(evaluation: Evaluation | None, corpus: str | None) -> float | None:
    return None if evaluation is None else evaluation.bpb(corpus)


def _total(evaluation: Evaluation | None, name: str) -> float | None:
    return None if evaluation is None else evaluation.total(name)


def _pretrain(ladder: Ladder) -> Figures:
    figures: Figures = {"pretrain.heldout_bpb": None, "pretrain.heldout_bpb_5gram": None}
    for prefix, model in first_of_each(ladder.of_stage("pretrain"), ladder):
        corpus = model.parents.get("corpus")
        own, counts = ladder.evaluation(model), ladder.ngram(model)
        figures[f"{prefix}.heldout_bpb"] = _bpb(own, corpus)
        figures[f"{prefix}.heldout_bpb_5gram"] = _bpb(counts, corpus)
        if own is not None and counts is not None and corpus is not None:
            gap = bits_difference(counts.text_items(corpus), own.text_items(corpus), seed=0)
            if gap is not None:
                figures[f"{prefix}.heldout_bpb_minus_5gram"] = gap.value
                figures[f"{prefix}.heldout_bpb_minus_5gram_high"] = gap.high
    return figures


def _continue(ladder: Ladder) -> Figures:
    """Runs with replay first: `continue.*` is the main one, `continue.no_replay.*` beside it."""
    models = ladder.of_stage("continue")
    with_replay = [m for m in models if "replay" in m.parents]
    without = [m for m in models if "replay" not in m.parents]
    named = first_of_each(with_replay or without, ladder)
    if with_replay:
        named += [("continue.no_replay", m) for m in without[:1]]
        named += [(ladder.name(m.id), m) for m in without[1:]]
    figures: Figures = {
        f"continue.{kind}_bpb_{when}": None
        for kind in ("fresh", "old")
        for when in ("before", "after")
    }
    for prefix, model in named:
        before = ladder.evaluation(ladder.parent(model, "model"))
        after = ladder.evaluation(model)
        fresh = model.parents.get("corpus")
        older = [c for c in ladder.text_history(model) if c != fresh]
        old = older[-1] if older else None
        for kind, corpus in (("fresh", fresh), ("old", old)):
            figures[f"{prefix}.{kind}_bpb_before"] = _bpb(before, corpus)
            figures[f"{prefix}.{kind}_bpb_after"] = _bpb(after, corpus)
    return figures


def _sft(ladder: Ladder) -> Figures:
    wanted = ("stop_rate", "utility", "rouge_l", "passage_rouge_l", "closed_book_rouge_l")
    figures: Figures = {"sft.stop_rate": None}
    for prefix, model in first_of_each(ladder.of_stage("sft"), ladder):
        own, before = ladder.evaluation(model), ladder.evaluation(ladder.parent(model, "model"))
        for name in wanted:
            figures[f"{prefix}.{name}"] = _total(own, name)
        figures[f"{prefix}.rouge_l_before"] = _total(before, "rouge_l")
        figures[f"{prefix}.reference_bpb"] = _total(own, "reference_bpb")
        figures[f"{prefix}.reference_bpb_before"] = _total(before, "reference_bpb")
    return figures


def _classify(ladder: Ladder) -> Figures:
    """Only where a recipe classifies: figures of one label a text, or of several."""
    figures: Figures = {}
    for prefix, model in first_of_each(ladder.of_stage("classify"), ladder):
        noted = model.notes.get("figures") or {}
        figures |= {f"{prefix}.{name}": _number(noted, name) for name in noted}
    return figures


def _reward(ladder: Ladder) -> Figures:
    figures: Figures = {"reward.pair_accuracy": None, "reward.noise_ceiling": None}
    for prefix, model in first_of_each(ladder.of_stage("reward"), ladder):
        noted = model.notes.get("figures") or {}
        for name in ("pair_accuracy", "pair_accuracy_low", "noise_ceiling", "way_to_ceiling"):
            figures[f"{prefix}.{name}"] = _number(noted, name)
    return figures


_ALIGNED_FIGURES = {
    "win_rate": ("win_rate", "value"),
    "win_rate_low": ("win_rate", "low"),
    "win_rate_high": ("win_rate", "high"),
    "false_claim_rate_before": ("false_claim_rate_before",),
    "false_claim_rate_after": ("false_claim_rate_after",),
    "refusal_rate_on_real_before": ("refusal_on_real_rate_before",),
    "refusal_rate_on_real_after": ("refusal_on_real_rate_after",),
    "kl": ("kl", "value"),
}
"""Name of the figure -> where it is in a comparison with the model before."""


def _aligned(ladder: Ladder, prefix: str, model: Artefact) -> Figures:
    versus = versus_parent(ladder, model)
    figures: Figures = {}
    for name, path in _ALIGNED_FIGURES.items():
        value: Any = versus
        for key in path:
            value = value.get(key) if value is not None else None
        figures[f"{prefix}.{name}"] = value
    if figures[f"{prefix}.kl"] is None:  # in training, on rollouts, where it was not evaluated
        figures[f"{prefix}.kl"] = _number(model.notes.get("figures") or {}, "kl")
    return figures
