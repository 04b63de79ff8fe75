"""From artefacts to a policy: what preference stages do around their objectives."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rung.errors import DataError
from rung.feedback.rankings import load_rankings, split_by_prompt
from rung.feedback.schema import Ranking
from rung.model.adapters import save_trained
from rung.model.load import context_length
from rung.model.precision import pick_device, pick_dtype
from rung.model.types import PreTrainedModel
from rung.store.context import Notes, StageContext
from rung.tokens.tokenizer import Tokenizer, load_tokenizer
from rung.train import scorecard
from rung.train.cost import cost_notes
from rung.train.loop import train
from rung.train.preference import PreferenceObjective
from rung.train.ranked import RankedTree, encode_rankings
from rung.train.reference import answer_logps_of, cached_logps
from rung.train.start import start_model
from rung.train.watch import Watch


def run_preference(
    context: StageContext, config: Any, objective: type[PreferenceObjective]
) -> Notes:
    """Train the policy on judged answers; the model it starts from is its reference, if any."""
    source = context.input("model")
    tokenizer = load_tokenizer(source.path)
    model = start_model(source.path, config)
    records = load_rankings(context.input("feedback").path)
    usable = objective.usable(records, config)
    if len(usable) < len(records):
        left = len(records) - len(usable)
        context.progress.say(f"{left} of {len(records)} judgements {objective.unusable}: left out")
    limit = context_length(model)
    trees, heldout = _encode(usable, tokenizer, config, context, limit=limit)
    _say_margins(objective, [tree.record for tree in trees], context)
    whole = config.model_copy(update={"epochs": 1, "rankings_per_update": max(2, len(heldout))})
    wanted = objective.reference_trees(trees, config, limit=limit)
    reference = _reference(
        model,
        [*wanted, *objective.reference_trees(heldout, whole, limit=limit)],
        config,
        folder=context.run,
        source=source.id,
    )
    trained = objective(model, trees, reference[: len(wanted)], config)
    view = objective(model, heldout, reference[len(wanted) :], whole)
    before = measure(view, reference[len(wanted) :][: len(heldout)] or _logps(view))
    trained.start(context)
    asked = [tree.record.prompt for tree in heldout]
    trained.watch = Watch(model, tokenizer, asked, config, total=trained.num_iterations())
    result = train(trained, config, context)
    view.look(0)
    held = measure(view, _logps(view))
    save_trained(model, context.out, base=source.id)
    tokenizer.save_into(context.out)
    for line in summary(before, held):
        context.progress.say(line)
    return {
        "figures": {
            **{f"heldout/{name}": value for name, value in held.items()},
            **{f"heldout_before/{name}": value for name, value in before.items()},
        },
        "counts": {
            "train_rankings": len(trees),
            "heldout_rankings": len(heldout),
            "train_answers": sum(len(tree.ranks) for tree in trees),
        },
        **cost_notes(result, model, extra_forwards=trained.extra_forwards()),
    }


def measure(view: PreferenceObjective, logps: Sequence[np.ndarray]) -> dict[str, float]:
    """Mean loss and metrics where the trees of `view` have these log-probabilities [K] each, and a
    95 % interval over prompts of how often the rewards order its pairs rightly."""
    answers = view.answers(torch.from_numpy(np.concatenate(logps)), view.trees)
    part = view.judge(answers, view.trees)
    figures = {"loss": float(part.loss) / part.count}
    figures |= {name: total / count for name, (total, count) in part.metrics.items() if count}
    view.after_iteration(0, figures)
    cuts = np.cumsum([len(tree.ranks) for tree in view.trees])[:-1]
    scores = np.split(view.rewards(answers).numpy(), cuts)
    ordered = [view.pairs(tree) for tree in view.trees]
    pairs = scorecard.Pairs(
        np.concatenate([own[pair[:, 0]] for own, pair in zip(scores, ordered, strict=True)]),
        np.concatenate([own[pair[:, 1]] for own, pair in zip(scores, ordered, strict=True)]),
        np.repeat(np.arange(len(ordered)), [len(pair) for pair in ordered]),
    )
    figures["num_pairs"] = len(pairs)
    if len(pairs):
        right = scorecard.accuracy(pairs, seed=view.config.seed)
        figures |= {f"rewards/accuracies_{end}": right[end] for end in ("low", "high")}
    return figures


def _logps(view: PreferenceObjective) -> list[np.ndarray]:
    """The policy's log-probabilities of the answers of `view` as it is now."""
    config = view.config
    return answer_logps_of(
        view.model, view.trees, config=config, microbatch_tokens=config.microbatch_tokens
    )


def _encode(
    records: Sequence[Ranking],
    tokenizer: Tokenizer,
    config: Any,
    context: StageContext,
    *,
    limit: int,
) -> tuple[list[RankedTree], list[RankedTree]]:
    """(train, held out) as trees; what is left out is said."""
    fraction = config.heldout_fraction
    sides = split_by_prompt(records, heldout_fraction=fraction, seed=config.seed)
    if not all(sides):
        raise DataError(
            "one side of the split by prompt is empty: collect more rankings, or change "
            f"heldout_fraction (now {fraction})"
        )
    (trees, dropped), (heldout, more) = (
        encode_rankings(side, tokenizer, max_tokens=limit) for side in sides
    )
    if dropped + more:
        context.progress.say(
            f"{dropped + more} of {len(records)} judgements longer than the context of {limit}: "
            "left out"
        )
    return trees, heldout


def _reference(
    model: PreTrainedModel,
    trees: Sequence[RankedTree],
    config: Any,
    *,
    folder: Path,
    source: str,
) -> list[np.ndarray]:
    """Log-probabilities of the answers of `trees`, from the run folder where they are known."""
    if not trees:
        return []
    tokens = sha256()
    for tree in trees:
        for segment in tree.tree:
            tokens.update(np.int64(len(segment.ids)).tobytes() + segment.ids.tobytes())
    device = pick_device(config.device)
    identity = {
        "model": source,
        "precision": str(pick_dtype(config.precision, device)),
        "adapter": config.adapter != "none",  # beside one, frozen weights are rounded
        "base_bits": config.base_bits,
        "tokens": tokens.hexdigest(),
    }
    return cached_logps(
        model,
        trees,
        config=config,
        microbatch_tokens=config.microbatch_tokens,
        folder=folder,
        identity=identity,
    )


def _say_margins(
    objective: type[PreferenceObjective], records: Sequence[Ranking], context: StageContext
) -> None:
    num = sum(record.margin is not None for record in records)
    if num:
        use = "the policy must lead by them" if objective.uses_margins else "not used by this loss"
        context.progress.say(f"{num} of {len(records)} judgements come with a margin: {use}")


def summary(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    """What the held-out answers say of a run, in lines for people."""
    line = f"held-out: loss {after['loss']:.4f} ({before['loss']:.4f} before training)"
    if "rewards/accuracies" in after:
        low, high = (after[f"rewards/accuracies_{end}"] for end in ("low", "high"))
        line += (
            f", accuracy {after['rewards/accuracies']:.3f} [{low:.3f}, {high:.3f}]"
            f" over {after['num_pairs']:.0f} pairs"
        )
    lines = [line]
    was, now = (figures.get("logps/chosen", 0.0) for figures in (before, after))
    if now < FALL * was:
        lines.append(
            f"the log-probability of preferred answers fell too, from {was:.1f} to {now:.1f}: most "
            "losses ask for a growing gap only; raise nll_weight or beta, or lower lr"
        )
    return lines


FALL = 1.25
"""Times as improbable, in nats, as before training: from here on the fall is worth a line."""
