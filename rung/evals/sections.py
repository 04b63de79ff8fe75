"""One section of the report for each stage: figures, curves and counts of that stage."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rung.evals import charts, label_section
from rung.evals.charts import Chart
from rung.evals.cost import cost_of, count_parameters
from rung.evals.ladder import Ladder
from rung.evals.numerals import amount, estimate, number, percent, seconds
from rung.evals.tables import Table, drop_table, tables_of
from rung.evals.words import words_of
from rung.store.artefact import Artefact
from rung.train.health import examine

Step = dict[str, Any]


@dataclass
class Section:
    """What the page shows of one stage."""

    name: str
    title: str
    lesson: str
    artefact: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def stage_sections(ladder: Ladder, steps: Mapping[str, Sequence[Step]]) -> list[Section]:
    """A section for every entry that is not a measurement, in order."""
    return [
        build_section(ladder, name, artefact, steps.get(name, ()))
        for name, artefact in ladder.entries.items()
        if artefact.kind != "evaluation"
    ]


def build_section(ladder: Ladder, name: str, artefact: Artefact, steps: Sequence[Step]) -> Section:
    words = words_of(artefact.stage)
    section = Section(name, words.title, words.lesson, artefact.short_id)
    section.facts = _facts(ladder, artefact, steps)
    if artefact.kind in ("corpus", "tokenizer", "dataset", "labels", "feedback"):
        _add_report(section, artefact)
    if artefact.stage in ("collect", "feedback"):
        section.warnings.append(_who_judged(artefact))
    if artefact.kind == "classifier":
        record = label_section.read_record(artefact)
        section.facts += label_section.classifier_facts(record)
        section.charts += label_section.classifier_charts(record)
        section.tables.append(label_section.label_table(record))
    curve = charts.loss_chart(steps)
    if curve:
        section.charts.append(curve)
    if artefact.kind == "reward-model":
        _add_calibration(section, artefact)
    _add_preference(section, artefact)
    _add_policy(section, artefact, steps)
    return section


def _facts(ladder: Ladder, artefact: Artefact, steps: Sequence[Step]) -> list[tuple[str, str]]:
    cost = cost_of(artefact, steps)
    facts = [("time", seconds(cost.seconds))]
    if cost.peak_rss_gb is not None:
        facts.append(("peak memory", f"{cost.peak_rss_gb:.2f} GB"))
    if parameters := count_parameters(artefact):
        facts.append(("parameters", amount(parameters)))
    if cost.tokens is not None:
        facts.append(("tokens trained", amount(cost.tokens)))
    if cost.flop is not None:
        facts.append(("operations", amount(cost.flop, "FLOP")))
    if cost.tokens_per_s is not None:
        facts.append(("speed", amount(cost.tokens_per_s, "tokens/s")))
    if cost.mfu is not None:
        facts.append(("share of the peak (MFU)", percent(cost.mfu)))
    if stopped := artefact.notes.get("stopped"):
        facts.append(("stopped early", str(stopped)))
    evaluation = ladder.evaluation(artefact) if artefact.kind == "model" else None
    if evaluation is not None:
        totals = evaluation.result.get("instruct", {}).get("totals", {})
        for key, label, share in (
            ("stop_rate", "answers that stop", True),
            ("utility", "noise-free utility", False),
            ("false_claim_rate", "claims about made-up functions", True),
            ("false_claim_rate/coined", "of those with a coined name", True),
            ("false_claim_rate/recombined", "of those recombined from real names", True),
            ("refusal_rate_on_real", "refusals of real functions", True),
        ):
            if key in totals:
                facts.append((label, estimate(totals[key], as_percent=share)))
    return facts


def _add_report(section: Section, artefact: Artefact) -> None:
    """Counts of a data stage, from its report.json."""
    if "report.json" not in artefact.files:
        return
    report = json.loads(artefact.file("report.json").read_text(encoding="utf-8"))
    dropped = drop_table(report)
    if dropped is not None:
        section.tables.append(dropped)
    section.tables += tables_of(report)


def _who_judged(artefact: Artefact) -> str:
    if artefact.stage == "collect":
        return (
            "Ranked by a SIMULATED annotator, not by people: a rule that knows the true answer, "
            "with errors at a stated rate."
        )
    return "Judged by people, as far as the imported files say."


def _add_calibration(section: Section, artefact: Artefact) -> None:
    if "reward.json" not in artefact.files:
        return
    record = json.loads(artefact.file("reward.json").read_text(encoding="utf-8"))
    held = record.get("heldout", {})
    drawn = charts.calibration_chart(held.get("calibration", {}).get("bins", []))
    if drawn:
        section.charts.append(drawn)
    right = held.get("pair_accuracy")
    section.facts += [
        ("held-out pairs ordered rightly", estimate(right, as_percent=True)),
        ("noise ceiling", percent(held.get("noise_ceiling"))),
        ("way from chance to the ceiling", percent(held.get("way_to_ceiling"))),
        ("calibration error", number(held.get("calibration", {}).get("ece"))),
        ("correlation of reward with length", number(held.get("reward_length_correlation"))),
    ]
    if "simulated" in record.get("annotator_kinds", ()):
        section.warnings.append("Learned from the rankings of a SIMULATED annotator.")


def _add_preference(section: Section, artefact: Artefact) -> None:
    """How a policy orders judged answers that it never saw, where its stage measured that."""
    found = artefact.notes.get("figures") or {}
    ends = ("", "_low", "_high")
    value, low, high = (found.get(f"heldout/rewards/accuracies{end}") for end in ends)
    if value is not None and low is not None:
        right = {"value": value, "low": low, "high": high, "n": found.get("heldout/num_pairs")}
        section.facts.append(("held-out pairs ordered rightly", estimate(right, as_percent=True)))


_CURVES = (
    (
        "Preference accuracy",
        {"rewards/accuracies": "pairs ordered rightly", "accuracy": "pairs ordered rightly"},
    ),
    (
        "Validation texts during training",
        {
            "validation_loss": "loss",
            "validation_accuracy": "share right",
            "train_accuracy": "share right of training texts",
        },
    ),
    ("Distance from the model before", {"objective/kl": "KL, nats per answer"}),
    (
        "Held-out questions during training",
        {
            "eval/utility": "noise-free utility",
            "eval/stop_rate": "answers that stop",
            "eval/false_claim_rate": "false claims",
            "eval/refusal_rate_on_real": "refusals of real ones",
        },
    ),
)


def _add_policy(section: Section, artefact: Artefact, steps: Sequence[Step]) -> None:
    """Curves and health of a stage that changes answers."""
    found = [charts.over_optimisation_chart(steps)]
    found += [charts.columns_chart(steps, wanted, title=title) for title, wanted in _CURVES]
    section.charts += [drawn for drawn in found if drawn]
    if artefact.stage in ("ppo", "grpo"):
        section.tables.append(health_table(steps))


def health_table(steps: Sequence[Step]) -> Table:
    """What the health panel found over the run: which, how often, since when, what to do."""
    seen: dict[str, list[tuple[int, Any]]] = {}
    for step in steps:
        readings = {k: float(v) for k, v in step.items() if isinstance(v, (int, float))}
        for finding in examine(readings, int(step["step"])):
            seen.setdefault(finding.name, []).append((int(step["step"]), finding))
    rows = [
        [
            name.replace("_", " "),
            str(len(found)),
            str(found[0][0]),
            number(max((f.value for _, f in found), key=abs)),
            number(found[0][1].limit),
            found[0][1].advice,
        ]
        for name, found in sorted(seen.items())
    ]
    head = ["finding", "times", "first at", "worst", "limit", "what to do"]
    empty = "The health panel found nothing in this run." if steps else "No steps were logged."
    return Table("Health panel", head, rows, empty=empty)
