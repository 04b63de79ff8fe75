"""What the report shows of a classifier: figures, confusion matrix, reliability, a row a label."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rung.evals.charts import Chart, chart, series
from rung.evals.numerals import estimate, number, percent
from rung.evals.tables import MAX_ROWS, Table
from rung.store.artefact import Artefact

MAX_CELLS = 12
"""Labels up to which the matrix has a number in each cell; more would not be legible."""


def read_record(artefact: Artefact) -> dict[str, Any]:
    """classifier.json of a classifier."""
    return dict(json.loads(artefact.file("classifier.json").read_text(encoding="utf-8")))


def classifier_facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    held, before = record["heldout"], record["uncalibrated"]
    facts = []
    for key, label in (
        ("accuracy", "held-out texts labelled rightly"),
        ("micro_f1", "micro F1"),
        ("macro_f1", "macro F1"),
        ("all_labels_right", "texts with every label right"),
    ):
        if key in held:
            facts.append((label, f"{estimate(held[key], as_percent=True)}, n {held[key]['n']:,}"))
    if "commonest_label_accuracy" in held:
        share = percent(held["commonest_label_accuracy"])
        facts.append(("always the commonest label", share))
    ece, was = held["calibration"]["ece"], before["calibration"]["ece"]
    facts.append(("calibration error, before and after", f"{number(was)}, {number(ece)}"))
    facts.append(
        ("log loss, before and after", f"{number(before['log_loss'])}, {number(held['log_loss'])}")
    )
    facts.append(("temperature", number(record["temperature"], digits=2)))
    if cut := sum(record["truncated"].values()):
        facts.append(("texts cut off", number(cut)))
    return facts


def classifier_charts(record: Mapping[str, Any]) -> list[Chart]:
    drawn = []
    if "confusion" in record["heldout"]:
        drawn.append(confusion_chart(record["heldout"]["confusion"], record["labels"]))
    drawn.append(reliability_chart(record))
    return drawn


def confusion_chart(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> Chart:
    """Texts by true label (down) and label given (across); a row's colours are its shares.

    Of many labels those with the most texts.
    """
    sizes = [sum(row) for row in matrix]
    kept = sorted(sorted(range(len(labels)), key=lambda i: (-sizes[i], i))[:MAX_ROWS])
    names = [labels[i] for i in kept]
    counts = [[matrix[i][j] for j in kept] for i in kept]
    shares = [
        [count / max(1, sizes[i]) for count in row] for i, row in zip(kept, counts, strict=True)
    ]
    trace: dict[str, Any] = {
        "type": "heatmap",
        "x": names,
        "y": names,
        "z": shares,
        "text": [[f"{count:,}" for count in row] for row in counts],
        "zmin": 0,
        "zmax": 1,
        "slot": 0,
        "name": "share of the true label",
        "hovertemplate": "true %{y}, given %{x}: %{text} texts, %{z:.1%}<extra></extra>",
    }
    if len(names) <= MAX_CELLS:
        trace["texttemplate"] = "%{text}"
    title = "Confusion matrix, held-out texts"
    if len(names) < len(labels):
        title += f" ({len(names)} commonest of {len(labels)} labels)"
    drawn = chart(title, [trace], x="label given", y="true label")
    for axis in ("xaxis", "yaxis"):  # labels that are numbers are still names
        drawn["layout"][axis] |= {"type": "category", "constrain": "domain"}
    drawn["layout"]["yaxis"]["autorange"] = "reversed"
    return drawn


def reliability_chart(record: Mapping[str, Any]) -> Chart:
    """Confidence against how often it was right, before and after temperature scaling."""
    data = [series([0, 1], [0, 1], name="calibrated", slot=7, line={"dash": "dot"})]
    for name, part, slot in (
        ("before temperature scaling", record["uncalibrated"], 1),
        ("held-out texts", record["heldout"], 0),
    ):
        bins = part["calibration"]["bins"]
        data.append(
            series(
                [b["expected"] for b in bins],
                [b["observed"] for b in bins],
                name=name,
                slot=slot,
                mode="lines+markers",
                text=[f"{b['n']:,} decisions" for b in bins],
            )
        )
    said = "probability of a label" if record["multi_label"] else "confidence in the label given"
    seen = "share that has it" if record["multi_label"] else "share given rightly"
    return chart("Reliability", data, x=said, y=seen)


def label_table(record: Mapping[str, Any]) -> Table:
    """Precision, recall, F1 and number of held-out texts of each label."""
    several = record["multi_label"]
    head = ["label", "precision", "recall", "F1", "held-out texts"]
    rows = [
        [
            str(label),
            number(of["precision"]),
            number(of["recall"]),
            number(of["f1"]),
            number(of["support"]),
            *([number(record["thresholds"][index], digits=2)] if several else []),
        ]
        for index, (label, of) in enumerate(
            zip(record["labels"], record["heldout"]["per_label"], strict=True)
        )
    ]
    rows.sort(key=lambda row: (row[3] == "-", row[3]))
    note = "worst first"
    if len(rows) > MAX_ROWS:
        note += f"; {MAX_ROWS} of {len(rows)}, classifier.json of the artefact has all"
    return Table("Labels", head + ["threshold"] * several, rows[:MAX_ROWS], note=note)
