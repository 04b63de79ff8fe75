"""The table for the person who decides: what each stage did, took, cost, gained and lost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rung.evals.changes import Change, changes, versus_parent
from rung.evals.cost import Cost, cost_of
from rung.evals.ladder import ALIGNED, PREFERRED, Ladder
from rung.evals.numerals import amount, number, percent
from rung.evals.words import words_of
from rung.store.artefact import Artefact

Steps = Mapping[str, Sequence[dict[str, Any]]]
"""Logged steps by entry name."""


@dataclass(frozen=True)
class OverviewRow:
    """One line of the table. gained, lost: short sentences with figures."""

    name: str
    title: str
    purpose: str
    data: str
    cost: Cost
    gained: list[str]
    lost: list[str]
    anchor: bool = True


def overview(ladder: Ladder, steps: Steps) -> list[OverviewRow]:
    """A row for each stage in order; all measuring is one row at the end."""
    rows = []
    measured: list[Artefact] = []
    for name, artefact in ladder.entries.items():
        if artefact.kind == "evaluation":
            measured.append(artefact)
            continue
        gained, lost = gains(ladder, artefact)
        rows.append(
            OverviewRow(
                name=name,
                title=words_of(artefact.stage).title,
                purpose=words_of(artefact.stage).purpose,
                data=data_used(ladder, artefact),
                cost=cost_of(artefact, steps.get(name, ())),
                gained=gained,
                lost=lost,
            )
        )
    if measured:
        rows.append(_measuring(measured))
    return rows


def _measuring(measured: Sequence[Artefact]) -> OverviewRow:
    costs = [cost_of(artefact) for artefact in measured]
    peak = max((c.peak_rss_gb or 0.0 for c in costs), default=0.0)
    return OverviewRow(
        name="measuring",
        title="Evaluate",
        purpose=words_of("evaluate").purpose,
        data=f"{len(measured)} evaluations on the same held-out items",
        cost=Cost(sum(c.seconds for c in costs), peak or None, None, None),
        gained=["the figures on this page"],
        lost=[],
        anchor=False,
    )


_COUNTS = {
    "curate": (("documents", "documents"),),
    "tokenizer": (("bytes", "bytes of text"),),
    "instruct": (("num_train", "questions to train on"), ("num_heldout", "held out")),
    "dataset": (("num_train", "conversations to train on"), ("num_heldout", "held out")),
    "labels": (("num_train", "texts to train on"), ("num_heldout", "held out")),
    "classify": (("train_texts", "texts"),),
    "sft": (("conversations", "conversations"), ("supervised_tokens", "answer tokens")),
    "collect": (("rankings", "rankings by the simulated annotator"),),
    "feedback": (("rankings", "rankings by people"),),
    "reward": (("train_rankings", "rankings"),),
    **dict.fromkeys(PREFERRED, (("train_rankings", "judgements"),)),
    "ppo": (("prompts", "prompts, answers its own"),),
    "grpo": (("prompts", "prompts, answers its own"),),
}


def data_used(ladder: Ladder, artefact: Artefact) -> str:
    """Which artefacts went in, and how much."""
    roles = [
        role for role in sorted(artefact.parents) if not role.startswith(("model", "tokenizer"))
    ]
    names = list(dict.fromkeys(ladder.name(artefact.parents[role]) for role in roles))
    counts = {**(artefact.notes.get("counts") or {}), **(artefact.notes.get("figures") or {})}
    amounts = [
        f"{amount(float(counts[key]))} {label}"
        for key, label in _COUNTS.get(artefact.stage, ())
        if isinstance(counts.get(key), (int, float))
    ]
    if artefact.stage in ("pretrain", "continue") and artefact.notes.get("tokens"):
        amounts.append(amount(float(artefact.notes["tokens"]), "tokens"))
    return ": ".join(part for part in (" + ".join(names), ", ".join(amounts)) if part)


def gains(ladder: Ladder, artefact: Artefact) -> tuple[list[str], list[str]]:
    """(gained, lost) with measured figures; only differences that chance does not explain."""
    figures = artefact.notes.get("figures") or {}
    if artefact.stage == "tokenizer" and figures.get("bytes_per_token"):
        return [f"{number(figures['bytes_per_token'], digits=2)} bytes per token"], []
    if artefact.stage == "reward":
        ceiling = figures.get("noise_ceiling")
        limit = f" (noise ceiling {percent(ceiling)})" if ceiling is not None else ""
        return [
            f"orders {percent(figures.get('pair_accuracy'))} of unseen pairs rightly{limit}"
        ], []
    if artefact.stage == "classify":
        return [_classified(figures)], []
    if artefact.stage == "pretrain":
        return _pretrain_gains(ladder, artefact)
    if artefact.kind != "model":
        return [], []
    gained: list[str] = []
    lost: list[str] = []
    if artefact.stage in PREFERRED and figures.get("heldout/rewards/accuracies") is not None:
        right = percent(figures["heldout/rewards/accuracies"])
        gained.append(f"orders {right} of unseen pairs rightly")
    if artefact.stage in ALIGNED:
        wins = versus_parent(ladder, artefact).get("win_rate")
        if wins:
            sentence = (
                f"wins {percent(wins['value'])} [{100 * wins['low']:.0f}, {100 * wins['high']:.0f}]"
                f" against {ladder.name(artefact.parents.get('model'))}"
            )
            if wins["low"] <= 0.5 <= wins["high"]:
                sentence = f"undecided: {sentence}"
            (lost if wins["high"] < 0.5 else gained).append(sentence)
    before = ladder.evaluation(ladder.parent(artefact, "model"))
    for change in changes(ladder, before, ladder.evaluation(artefact)):
        if change.certain:
            (gained if change.better else lost).append(sentence_of(change))
    return gained, lost


def _classified(figures: Mapping[str, Any]) -> str:
    """labels 91 % of held-out texts rightly (commonest label: 50 %)"""
    macro = f"macro F1 {number(figures.get('macro_f1'))}"
    if "accuracy" not in figures:
        return f"micro F1 {number(figures.get('micro_f1'))}, {macro} on held-out texts"
    least = percent(figures.get("commonest_label_accuracy"))
    share = percent(figures["accuracy"])
    return f"labels {share} of held-out texts rightly (commonest label: {least}), {macro}"


def _pretrain_gains(ladder: Ladder, model: Artefact) -> tuple[list[str], list[str]]:
    own, counts = ladder.evaluation(model), ladder.ngram(model)
    corpus = model.parents.get("corpus")
    reached = own.bpb(corpus) if own is not None else None
    if reached is None:
        return [], []
    yardstick = counts.bpb(corpus) if counts is not None else None
    against = f" (5-gram model: {number(yardstick)})" if yardstick is not None else ""
    return [f"{number(reached)} bits per byte on held-out {ladder.name(corpus)}{against}"], []


def sentence_of(change: Change) -> str:
    """answers that stop: 2 % -> 98 %"""
    if change.unit == "percent":
        return f"{change.label}: {percent(change.before)} -> {percent(change.after)}"
    moved = ""
    if change.unit == "bits" and change.before:
        moved = f" ({100 * (change.after / change.before - 1):+.1f} %)"
    digits = 3 if change.unit == "bits" else 2
    return (
        f"{change.label}: {number(change.before, digits=digits)} -> "
        f"{number(change.after, digits=digits)}{moved}"
    )
