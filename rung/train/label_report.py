"""A trained classifier: calibrated on validation texts, measured on held-out ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rung.engine.classify import Encoded
from rung.model.classifier import Classifier, Labelling
from rung.store.context import Notes, StageContext
from rung.train import label_scores
from rung.train.label_texts import Texts


def measure(
    model: Classifier, logits: dict[str, np.ndarray], parts: dict[str, Texts], *, seed: int
) -> dict[str, Any]:
    """Calibrate `model` on the validation part; figures of the held-out texts before and after."""
    several = model.labelling.multi_label
    before = model.labelling
    aside = parts["validation"].truth
    temperature = 1.0
    thresholds: tuple[float, ...] = (0.5,) * len(before.labels) if several else ()
    if len(aside):
        temperature = label_scores.fit_temperature(logits["validation"], aside, multi_label=several)
        model.calibrate(temperature=temperature, thresholds=thresholds)
        if several:
            cool = _probabilities(model.labelling, logits["validation"])
            thresholds = label_scores.fit_thresholds(cool, aside)
    plain = _figures(before, logits["heldout"], parts["heldout"].truth, (), seed=seed)
    model.calibrate(temperature=temperature, thresholds=thresholds)
    held = _figures(
        model.labelling, logits["heldout"], parts["heldout"].truth, thresholds, seed=seed
    )
    return {
        "heldout": held,
        "uncalibrated": {key: plain[key] for key in ("calibration", "log_loss")},
        "num_texts": {side: len(texts) for side, texts in parts.items()},
    }


def _probabilities(labelling: Labelling, logits: np.ndarray) -> np.ndarray:
    return labelling.probabilities(torch.from_numpy(logits)).double().numpy()


def _figures(
    labelling: Labelling,
    logits: np.ndarray,
    truth: np.ndarray,
    thresholds: Sequence[float],
    *,
    seed: int,
) -> dict[str, Any]:
    probabilities = _probabilities(labelling, logits)
    if not labelling.multi_label:
        return label_scores.single_label(probabilities, truth, seed=seed)
    cuts = np.array(thresholds or [0.5] * len(labelling.labels))
    return label_scores.multi_label(probabilities, truth, cuts, seed=seed)


def say_lengths(context: StageContext, encoded: dict[str, Encoded], *, limit: int) -> None:
    """One line: how long the texts are, and how many were cut off."""
    lengths = [n for some in encoded.values() for n in some.lengths]
    cut = sum(some.truncated for some in encoded.values())
    line = (
        f"{len(lengths):,} texts, {sum(lengths):,} tokens, {np.median(lengths):.0f} in the median,"
        f" {max(lengths)} at most"
    )
    if cut:
        line += f"; {cut:,} texts ({cut / len(lengths):.1%}) cut off at {limit} tokens: max_tokens"
    context.progress.say(line)


def notes_of(context: StageContext, report: dict[str, Any], cost: dict[str, Any]) -> Notes:
    """Figures and counts of a stage, and a line with them for the user."""
    held = report["heldout"]
    before, after = report["uncalibrated"]["calibration"]["ece"], held["calibration"]["ece"]
    figures = {**label_scores.main_figures(held), "ece": after, "ece_uncalibrated": before}
    shown = ", ".join(
        f"{name.replace('_', ' ').replace('f1', 'F1')} {held[name]['value']:.3f}"
        f" [{held[name]['low']:.3f}, {held[name]['high']:.3f}]"
        for name in ("accuracy", "micro_f1", "macro_f1")
        if name in held
    )
    context.progress.say(
        f"held-out {shown}, n {report['num_texts']['heldout']:,}; "
        f"calibration error {before:.3f} before, {after:.3f} after temperature"
    )
    counts = {f"{side}_texts": n for side, n in report["num_texts"].items()}
    counts["truncated"] = sum(report["truncated"].values())
    return {"figures": figures, "counts": counts, **cost}
