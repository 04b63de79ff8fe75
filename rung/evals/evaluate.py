"""Stage `evaluate`: the fixed held-out suites, the same for every model of a ladder.

Bits per byte of held-out text, answers to held-out questions, tasks of choice, samples of fixed
prompts; against a baseline model, paired by question. A part whose input is missing is skipped,
and said.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

import rung.config
from rung.engine.sampling import Sampling
from rung.errors import DataError
from rung.evals.answers import Answer, Row, answer_rows, choose_rows, grade, split_by_length
from rung.evals.choice import item_row, score_items, summarise_task
from rung.evals.choice_rows import Item, fingerprint_tasks, read_tasks
from rung.evals.drift import answer_kl, answer_rewards
from rung.evals.heldout import HeldoutConfig, document_ids, read_heldout
from rung.evals.likelihood import answer_bits, document_bits, item_rows, summarise
from rung.evals.samples import CONTINUATIONS, QUESTIONS, answer_questions, continue_texts
from rung.evals.stats import bootstrap_mean
from rung.evals.tally import compare, tally_cells, tally_totals
from rung.model.heads import load_reward_model
from rung.model.load import context_length, load_model
from rung.model.precision import Precision, pick_device, pick_dtype
from rung.store.artefact import Artefact
from rung.store.context import Notes, StageContext
from rung.tokens.tokenizer import Tokenizer, load_tokenizer


class Config(rung.config.Config):
    """What is measured, and how answers are drawn."""

    seed: int = Field(0, description="of the sample of documents and questions, and of the answers")
    heldout: HeldoutConfig = Field(HeldoutConfig(), description="which held-out text is read")
    items_per_cell: int = Field(
        40, gt=0, description="questions per format and split group, at most"
    )
    made_up_items: int = Field(
        80, gt=0, description="questions about made-up functions, at most: few would say little"
    )
    temperature: float = Field(
        0.7, ge=0, description="of every answer: the default of `rung chat`; 0 is greedy"
    )
    max_new_tokens: int = Field(64, gt=0, description="length limit of an answer, tokens")
    sample_tokens: int = Field(48, gt=0, description="length limit of a sample, tokens")
    questions: tuple[str, ...] = Field(QUESTIONS, description="asked in a chat, shown side by side")
    continuations: tuple[str, ...] = Field(
        CONTINUATIONS, description="texts to go on from, shown side by side"
    )
    tasks: tuple[str, ...] = Field(
        (), description=".jsonl files of multiple choice and cloze items, a task each"
    )
    precision: Precision = Field("auto", description="of matrix products: auto, bf16 or fp32")
    device: str = Field("auto", description="auto, cpu or cuda")


def fingerprint(config: Config) -> dict[str, str]:
    """sha256 of every task file: a changed file is another input."""
    return fingerprint_tasks(config.tasks)


@dataclass(frozen=True)
class Subject:
    """A model at hand: its artefact's id, weights, tokenizer and compute type."""

    id: str
    model: Any
    tokenizer: Tokenizer
    dtype: torch.dtype
    context: int


def run(context: StageContext, config: Config) -> Notes:
    """Measures `model` into evaluation.json (figures) and items.jsonl (one row an item)."""
    tasks = read_tasks(config.tasks)
    subject = load_subject(context.input("model"), config)
    result: dict[str, Any] = {
        "model": subject.id,
        "settings": config.model_dump(mode="json"),
        "skipped": [],
    }
    items: list[dict[str, Any]] = []
    progress = context.progress
    progress.start("evaluate", total=5, unit="parts")
    _measure_text(context, config, subject, result, items)
    progress.update(1)
    answered = _measure_answers(context, config, subject, result, items)
    progress.update(2)
    if answered is not None:
        _measure_drift(context, config, subject, result, answered)
    progress.update(3)
    _measure_tasks(tasks, config, subject, result, items)
    progress.update(4)
    result["samples"] = sample(subject, config)
    progress.update(5)
    progress.finish()
    for part in result["skipped"]:
        progress.say(f"evaluate: no {part['part']}: {part['why']}")
    write_evaluation(context.out, result, items)
    return {"figures": figures_of(result), "counts": {"items": len(items)}}


def load_subject(artefact: Artefact, config: Config) -> Subject:
    """The model of an artefact with the tokenizer it carries."""
    device = pick_device(config.device)
    model = load_model(artefact.path, device=device)
    return Subject(
        artefact.id,
        model,
        load_tokenizer(artefact.path),
        pick_dtype(config.precision, device),
        context_length(model),
    )


def read_rows_of(dataset: Artefact, *, name: str = "heldout.jsonl") -> list[Row]:
    """Instruction rows of one file of a dataset, in file order."""
    lines = dataset.file(name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def _measure_text(
    context: StageContext,
    config: Config,
    subject: Subject,
    result: dict[str, Any],
    items: list[dict[str, Any]],
) -> None:
    corpora = context.many.get("corpora", ())
    result["likelihood"] = {}
    if not corpora:
        result["skipped"].append({"part": "bits per byte", "why": "no corpora were given"})
    for corpus in corpora:
        path = corpus.file("documents.parquet")
        documents = read_heldout(path, config.heldout, seed=config.seed)
        if not documents:
            why = f"corpus {corpus.short_id} has no held-out documents"
            result["skipped"].append({"part": "bits per byte", "why": why})
            continue
        bits = document_bits(
            subject.model,
            document_ids(subject.tokenizer, documents),
            bos=subject.tokenizer.bos,
            context=subject.context,
            dtype=subject.dtype,
        )
        result["likelihood"][corpus.id] = summarise(documents, bits, seed=config.seed)
        items.extend(item_rows(documents, bits, corpus=corpus.id))


def _sampling(config: Config, tokenizer: Tokenizer, *, max_new_tokens: int) -> Sampling:
    return Sampling(
        max_new_tokens=max_new_tokens,
        temperature=config.temperature,
        seed=config.seed,
        stop_ids=tokenizer.stop_ids,
    )


@dataclass(frozen=True)
class _Answered:
    """Questions with this model's answers and their grades."""

    rows: Sequence[Row]
    answers: Sequence[Answer]
    items: Sequence[dict[str, Any]]


def _measure_answers(
    context: StageContext,
    config: Config,
    subject: Subject,
    result: dict[str, Any],
    items: list[dict[str, Any]],
) -> _Answered | None:
    dataset = context.optional("dataset")
    if dataset is None:
        result["skipped"].append({"part": "questions", "why": "no dataset was given"})
        return None
    rows = choose_rows(
        read_rows_of(dataset),
        per_cell=config.items_per_cell,
        made_up=config.made_up_items,
        seed=config.seed,
    )
    rows, too_long = split_by_length(
        subject.tokenizer, rows, context=subject.context, max_new_tokens=config.max_new_tokens
    )
    if not rows:
        raise DataError(
            f"dataset {dataset.short_id}: none of its {len(too_long)} held-out questions leaves "
            f"{config.max_new_tokens} tokens for an answer in a context of {subject.context}; "
            "set a smaller max_new_tokens or give a dataset with shorter prompts"
        )
    answered = _ask(config, subject, rows)
    bits = answer_bits(
        subject.model, subject.tokenizer, rows, context=subject.context, dtype=subject.dtype
    )
    for item, row, value in zip(answered.items, rows, bits, strict=True):
        size = len(row["messages"][-1]["content"].encode())
        item |= {"reference_bits": value, "reference_bytes": size}
    result["instruct"] = {
        "dataset": dataset.id,
        "too_long": len(too_long),
        "totals": tally_totals(answered.items, seed=config.seed),
        "cells": tally_cells(answered.items, seed=config.seed),
    }
    items.extend(answered.items)
    return answered


def _ask(config: Config, subject: Subject, rows: Sequence[Row]) -> _Answered:
    sampling = _sampling(config, subject.tokenizer, max_new_tokens=config.max_new_tokens)
    answers = answer_rows(subject.model, subject.tokenizer, rows, sampling, dtype=subject.dtype)
    graded = [grade(row, answer) for row, answer in zip(rows, answers, strict=True)]
    return _Answered(rows, answers, graded)


def _measure_drift(
    context: StageContext,
    config: Config,
    subject: Subject,
    result: dict[str, Any],
    answered: _Answered,
) -> None:
    """Against the baseline (win rate, KL) and through the reward model, each if it was given."""
    names = [item["name"] for item in answered.items]
    baseline = context.optional("baseline")
    if baseline is not None:
        reference = load_subject(baseline, config)
        theirs = _ask(config, reference, answered.rows)
        kl = answer_kl(subject.model, reference.model, answered.answers)
        result["versus_baseline"] = {
            "baseline": baseline.id,
            **compare(answered.items, theirs.items, seed=config.seed),
            "kl": bootstrap_mean(kl, clusters=names, seed=config.seed).to_json(),
        }
        result["versus_baseline"]["totals"] = tally_totals(theirs.items, seed=config.seed)
    reward = context.optional("reward")
    if reward is not None:
        judge = load_reward_model(reward.path, device=pick_device(config.device))
        scores = answer_rewards(judge, answered.answers)
        estimate = bootstrap_mean(scores, clusters=names, seed=config.seed)
        result["reward"] = {"model": reward.id, "score": estimate.to_json()}


def _measure_tasks(
    tasks: Mapping[str, Sequence[Item]],
    config: Config,
    subject: Subject,
    result: dict[str, Any],
    items: list[dict[str, Any]],
) -> None:
    """Each task with its accuracies."""
    for name, asked in tasks.items():
        found = score_items(
            subject.model, subject.tokenizer, asked, context=subject.context, dtype=subject.dtype
        )
        rows = [item_row(name, item, scores) for item, scores in zip(asked, found, strict=True)]
        result.setdefault("tasks", {})[name] = summarise_task(rows, seed=config.seed)
        items.extend(rows)


def sample(subject: Subject, config: Config) -> dict[str, Any]:
    """Continuations of fixed texts and answers to fixed questions."""
    sampling = _sampling(config, subject.tokenizer, max_new_tokens=config.sample_tokens)
    model, tokenizer, dtype = subject.model, subject.tokenizer, subject.dtype
    return {
        "continuations": continue_texts(
            model, tokenizer, config.continuations, sampling, dtype=dtype
        ),
        "answers": answer_questions(model, tokenizer, config.questions, sampling, dtype=dtype),
    }


def figures_of(result: dict[str, Any]) -> dict[str, Any]:
    """The few numbers of a table row, from a whole evaluation."""
    figures: dict[str, Any] = {
        f"bpb/{corpus[:12]}": part["total"]["value"]
        for corpus, part in result.get("likelihood", {}).items()
    }
    for name, estimate in result.get("instruct", {}).get("totals", {}).items():
        figures[name] = estimate["value"] if isinstance(estimate, dict) else estimate
    for task, measures in result.get("tasks", {}).items():
        for name in ("acc", "acc_norm", "perplexity"):
            if name in measures:
                figures[f"{task}/{name}"] = measures[name]["value"]
    versus = result.get("versus_baseline", {})
    if "win_rate" in versus:
        figures |= {"win_rate": versus["win_rate"]["value"], "kl": versus["kl"]["value"]}
    return figures


def write_evaluation(out: Path, result: dict[str, Any], items: Sequence[dict[str, Any]]) -> None:
    """evaluation.json and items.jsonl, sorted keys, so that equal results have equal bytes."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, sort_keys=True, ensure_ascii=False)
    (out / "evaluation.json").write_text(text + "\n", encoding="utf-8")
    lines = [json.dumps(item, sort_keys=True, ensure_ascii=False) for item in items]
    (out / "items.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
