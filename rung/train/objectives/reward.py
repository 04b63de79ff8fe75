"""Reward model: SFT's sibling with one number per answer, trained on who beats whom.

Plackett-Luce over all K answers of a prompt (Plackett 1975; as a reward loss in Rafailov et al.
2023, appendix A.3), all in one forest. Stage i of a ranking: answer i wins against every answer
ranked equal or worse,

    loss_i = logsumexp_{j: rank_j >= rank_i} (s_j + margin [rank_j > rank_i]) - s_i,

and stages with a single runner are left out. K = 2 is Bradley-Terry; with a margin it is Touvron
et al. 2023 (Llama 2), equation 2. Ties: the tied answers share one set of runners (Breslow 1974
for the equal form of the Cox likelihood), so a tie pulls its scores together: it is evidence that
two answers are equally good, not the absence of evidence.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from rung.errors import DataError
from rung.feedback.rankings import load_rankings, split_by_prompt
from rung.model.heads import RewardModel, save_reward_model
from rung.model.load import context_length, load_model
from rung.model.precision import autocast, pick_device, pick_dtype
from rung.store.context import Notes, StageContext
from rung.tokens.tokenizer import load_tokenizer
from rung.train import scorecard
from rung.train.cost import cost_notes
from rung.train.health import correlation
from rung.train.loop import LossSums, Objective, train
from rung.train.optim import TrainConfig
from rung.train.ranked import EpochOrder, RankedForest, RankedTree, encode_rankings, microbatches


class Config(TrainConfig):
    """Options of `rung reward`."""

    epochs: int = Field(2, ge=1, description="passes over the training rankings")
    rankings_per_update: int = Field(16, ge=1, description="prompts in one optimizer update")
    microbatch_tokens: int = Field(4096, ge=64, description="tokens in memory at once")
    heldout_fraction: float = Field(0.15, gt=0, lt=1, description="share of prompts held out")
    margin: float = Field(0.0, ge=0, description="lead a winner must have, in score units")
    centring: float = Field(0.01, ge=0, description="weight that pulls scores to mean 0 per prompt")
    optimizer: Literal["muon", "adamw"] = Field("adamw", description="fine-tuning keeps to AdamW")
    lr: float = Field(3e-4, gt=0, description="peak AdamW learning rate")


def ranking_nll(
    scores: Tensor, ranks: Tensor, ranking: Tensor, *, margin: float = 0.0
) -> tuple[Tensor, int]:
    """(sum of stage losses, number of stages) of Plackett-Luce with ties.

    scores float [A], ranks [A] (lower is better), ranking [A]: which ranking an answer is of.
    """
    same = ranking[:, None] == ranking[None, :]
    runs = same & (ranks[None, :] >= ranks[:, None])  # 1 = answer j runs in stage i
    worse = (ranks[None, :] > ranks[:, None]).to(scores.dtype)
    field = (scores[None, :] + margin * worse).masked_fill(~runs, -torch.inf)
    contested = runs.sum(1) > 1
    losses = torch.logsumexp(field, dim=1) - scores
    return losses[contested].sum(), int(contested.sum())


def centring_penalty(scores: Tensor, ranks: Tensor, ranking: Tensor) -> Tensor:
    """Sum over rankings of (2 mean score)^2, times the ranking's stages.

    For K = 2 it is (s_w + s_l)^2 of Eisenstein et al. 2023, equation 2. Comparisons leave the
    zero of the scores free in every prompt; this pins it, so scores compare across prompts.
    """
    num = int(ranking.max()) + 1
    size = torch.bincount(ranking, minlength=num)
    mean = scores.new_zeros(num).index_add(0, ranking, scores) / size
    return ((2 * mean) ** 2 * (size - 1)).sum()


class RewardObjective(Objective[RankedForest]):
    """Rankings in, a scoring backbone out."""

    name = "reward"

    def __init__(self, model: RewardModel, trees: list[RankedTree], config: Config):
        self.model, self.trees, self.config = model, trees, config
        self.device = pick_device(config.device)
        self.order = EpochOrder(len(trees), config.rankings_per_update, config.seed)

    def modules(self) -> torch.nn.Module:
        return self.model

    def num_iterations(self) -> int:
        return self.order.updates_per_epoch * self.config.epochs

    def updates(self, iteration: int) -> Iterable[list[RankedForest]]:
        chosen = [self.trees[i] for i in self.order.at(iteration)]
        max_tokens = self.config.microbatch_tokens
        yield list(microbatches(chosen, max_tokens=max_tokens, device=self.device))

    def loss(self, batch: RankedForest) -> LossSums:
        scores = self.model.raw_scores(batch.forest)
        nll, count = ranking_nll(scores, batch.ranks, batch.ranking, margin=self.config.margin)
        loss = nll
        if self.config.centring:
            loss = nll + self.config.centring * centring_penalty(scores, batch.ranks, batch.ranking)
        values = scores.detach()
        pairs = _pairs(np.split(values.cpu().numpy(), _cuts(batch.trees)), batch.trees)
        return LossSums(
            loss=loss,
            count=count,
            tokens=batch.forest.host.num_tokens,
            metrics={
                "accuracy": (float(scorecard.agreement(pairs).sum()), len(pairs)),
                "margin": (float((pairs.winner - pairs.loser).sum()), len(pairs)),
                "mean_reward": (float(values.sum()), len(values)),
            },
        )


def _cuts(trees: Sequence[RankedTree]) -> np.ndarray:
    return np.cumsum([len(tree.ranks) for tree in trees])[:-1]


def _pairs(scores: list[np.ndarray], trees: Sequence[RankedTree]) -> scorecard.Pairs:
    return scorecard.collect_pairs(scores, [tree.ranks for tree in trees])


@torch.no_grad()
def score_trees(
    model: RewardModel, trees: Sequence[RankedTree], config: Config
) -> list[np.ndarray]:
    """Raw scores of the answers of each ranking, [K] each."""
    device, scores = pick_device(config.device), []
    with autocast(pick_dtype(config.precision, device), device):
        for batch in microbatches(trees, max_tokens=config.microbatch_tokens, device=device):
            values = model.raw_scores(batch.forest).cpu().numpy().astype(np.float64)
            scores.extend(np.split(values, _cuts(batch.trees)))
    return scores


def noise_ceiling(trees: Sequence[RankedTree]) -> float | None:
    """How often the noise-free utility itself agrees with the judgements on their ordered pairs:
    no scorer can be expected to do better. None where the truth is not known (people)."""
    truth = [tree.record.source.get("utilities") for tree in trees]
    if not trees or any(values is None for values in truth):
        return None
    pairs = _pairs([np.asarray(values, dtype=float) for values in truth], trees)
    return float(scorecard.agreement(pairs).mean()) if len(pairs) else None


def figures(trees: Sequence[RankedTree], scores: list[np.ndarray], *, seed: int) -> dict[str, Any]:
    """What is known of the scores on one split: accuracy, ceiling, calibration, length."""
    pairs = _pairs(scores, trees)
    ceiling = noise_ceiling(trees)
    right = scorecard.accuracy(pairs, seed=seed)
    lengths = np.concatenate([tree.lengths for tree in trees])
    return {
        "num_prompts": len(trees),
        "pair_accuracy": right,
        "noise_ceiling": ceiling,
        "way_to_ceiling": None
        if ceiling is None
        else scorecard.way_to_ceiling(right["value"], ceiling),
        "calibration": scorecard.calibration(pairs),
        "reward_length_correlation": correlation(np.concatenate(scores), lengths.astype(float)),
    }


def run(context: StageContext, config: Config) -> Notes:
    """Train on the rankings of some prompts, measure on the others, normalise the scores."""
    folder = context.input("model").path
    device = pick_device(config.device)
    tokenizer = load_tokenizer(folder)
    backbone = load_model(folder, device=device)
    records = load_rankings(context.input("feedback").path)
    train_records, heldout_records = split_by_prompt(
        records, heldout_fraction=config.heldout_fraction, seed=config.seed
    )
    if not train_records or not heldout_records:
        raise DataError(
            f"{len(records)} rankings split into {len(train_records)} to train on and "
            f"{len(heldout_records)} held out; collect more, or change heldout_fraction "
            f"(now {config.heldout_fraction})"
        )
    limit = context_length(backbone)
    trees, dropped = encode_rankings(train_records, tokenizer, max_tokens=limit)
    heldout, dropped_heldout = encode_rankings(heldout_records, tokenizer, max_tokens=limit)
    if dropped + dropped_heldout:
        context.progress.say(
            f"{dropped + dropped_heldout} rankings dropped: longer than the context of {limit}"
        )
    _require_order(trees, "to train on")
    _require_order(heldout, "held out")
    model = RewardModel(backbone).to(device)
    result = train(RewardObjective(model, trees, config), config, context)

    train_scores = score_trees(model, trees, config)
    everything = np.concatenate(train_scores)
    model.shift, spread = float(everything.mean()), float(everything.std())
    model.scale = 1.0 / spread if spread > 1e-6 else 1.0
    report = {
        "train": figures(trees, train_scores, seed=config.seed),
        "heldout": figures(heldout, score_trees(model, heldout, config), seed=config.seed),
        "dropped": dropped + dropped_heldout,
        "annotator_kinds": sorted({record.kind for record in records}),
    }
    save_reward_model(model, context.out, report)
    tokenizer.save_into(context.out)
    return _notes(context, report, cost_notes(result, model, extra_forwards=0.0))


def _require_order(trees: Sequence[RankedTree], which: str) -> None:
    if not any(len(scorecard.ranked_pairs(tree.ranks)) for tree in trees):
        raise DataError(
            f"all answers tie in all {len(trees)} rankings {which}: nothing says which answer is "
            "better; collect more rankings, or with less noise and a smaller tie margin"
        )


def _notes(context: StageContext, report: dict[str, Any], cost: dict[str, Any]) -> Notes:
    held = report["heldout"]
    right, ceiling = held["pair_accuracy"], held["noise_ceiling"]
    context.progress.say(
        f"held-out pair accuracy {right['value']:.3f} [{right['low']:.3f}, {right['high']:.3f}]"
        + (f", noise ceiling {ceiling:.3f}" if ceiling is not None else "")
    )
    return {
        "figures": {
            "pair_accuracy": right["value"],
            "pair_accuracy_low": right["low"],
            "pair_accuracy_high": right["high"],
            "noise_ceiling": ceiling,
            "way_to_ceiling": held["way_to_ceiling"],
            "ece": held["calibration"]["ece"],
            "reward_length_correlation": held["reward_length_correlation"],
            "train_pair_accuracy": report["train"]["pair_accuracy"]["value"],
        },
        "counts": {
            "train_rankings": report["train"]["num_prompts"],
            "heldout_rankings": held["num_prompts"],
            "dropped": report["dropped"],
        },
        **cost,
    }
