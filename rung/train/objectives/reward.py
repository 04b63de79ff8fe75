"""Reward model: SFT's sibling with one number per answer, trained on who beats whom.

Plackett-Luce over all K answers of a prompt (Plackett 1975; as a reward loss in Rafailov et al.
2023, appendix A.3), all in one forest. Stage i of a ranking: answer i wins against every answer
ranked worse,

    loss_i = logsumexp_{j = i or rank_j > rank_i} (s_j + margin [j != i]) - s_i,

and stages with a single runner are left out. K = 2 is Bradley-Terry; with a margin it is Touvron
et al. 2023 (Llama 2), equation 2. Ties: tied answers run against the same worse ones and not
against each other. Letting them (Breslow 1974) pulls their scores together; where most answers
tie, that pull is most of the gradient, and it cost 7 points of accuracy (docs/training.md).

With `backbone: frozen` only the head learns, from evidence that is read once: minutes become
seconds, and with a few thousand rankings a small model keeps what it knew. With a trained backbone
all but the training itself looks at SAMPLE of the training rankings only: a pass over all of them
costs a third of an epoch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from rung.errors import DataError
from rung.feedback.rankings import comparisons, load_rankings, split_by_prompt
from rung.model.adapters import drop_inputs
from rung.model.heads import RewardModel, save_reward_model
from rung.model.load import context_length
from rung.model.precision import autocast, pick_device, pick_dtype
from rung.store.context import Notes, Progress, StageContext
from rung.tokens.forest import tree_size
from rung.tokens.tokenizer import load_tokenizer
from rung.train import scorecard
from rung.train.cost import cost_notes
from rung.train.health import correlation
from rung.train.loop import LossSums, Objective, train
from rung.train.optim import TrainConfig
from rung.train.ranked import (
    EpochOrder,
    RankedForest,
    RankedTree,
    encode_rankings,
    microbatches,
    stack_ranks,
)
from rung.train.start import start_model

SAMPLE = 128
"""Rankings that say where scores lie, before and after training a backbone."""


class Config(TrainConfig):
    """Options of `rung reward`."""

    epochs: int = Field(2, ge=1, description="passes over the training rankings")
    rankings_per_update: int = Field(16, ge=1, description="prompts in one optimizer update")
    heldout_fraction: float = Field(0.15, gt=0, lt=1, description="share of prompts held out")
    margin: float = Field(
        0.0, ge=0, description="lead a winner must have, in score units, beside that of its row"
    )
    centring: float = Field(0.01, ge=0, description="weight that pulls scores to mean 0 per prompt")
    backbone: Literal["trained", "frozen"] = Field(
        "trained", description="frozen: only the head learns, which wants more epochs"
    )
    hidden: int = Field(64, ge=1, description="width of the head's hidden layer")
    optimizer: Literal["muon", "adamw"] = Field("adamw", description="fine-tuning keeps to AdamW")
    lr: float = Field(3e-4, gt=0, description="peak AdamW learning rate")
    adapter_lr: ClassVar[float] = 3e-4

    @model_validator(mode="after")
    def _adapter_needs_a_trained_backbone(self) -> Self:
        if self.adapter != "none" and self.backbone == "frozen":
            raise ValueError("backbone: frozen trains the head alone: leave the adapter out")
        return self


def ranking_nll(
    scores: Tensor,
    ranks: Tensor,
    ranking: Tensor,
    *,
    margin: float | Tensor = 0.0,
    weights: float | Tensor = 1.0,
) -> tuple[Tensor, float]:
    """(sum of stage losses, number of stages) of Plackett-Luce with ties.

    scores float [A], ranks [A] (lower is better), ranking [A]: which ranking an answer is of.
    margin: one, or one per winner [A, 1]. weights: how much a stage counts, one or [A].
    """
    same = ranking[:, None] == ranking[None, :]
    beaten = same & (ranks[None, :] > ranks[:, None])  # 1 = answer i beats answer j
    runs = beaten | torch.eye(len(ranks), dtype=torch.bool, device=ranks.device)
    field = (scores[None, :] + margin * beaten.to(scores.dtype)).masked_fill(~runs, -torch.inf)
    contested = beaten.any(1)
    losses = (torch.logsumexp(field, dim=1) - scores) * weights
    return losses[contested].sum(), float((contested * weights).sum())


def centring_penalty(scores: Tensor, ranks: Tensor, ranking: Tensor) -> Tensor:
    """Sum over rankings of (2 mean score)^2, times the ranking's stages.

    For K = 2 it is (s_w + s_l)^2 of Eisenstein et al. 2023, equation 2. Comparisons leave the
    zero of the scores free in every prompt; this pins it, so scores compare across prompts.
    """
    num = int(ranking.max()) + 1
    size = torch.bincount(ranking, minlength=num)
    mean = scores.new_zeros(num).index_add(0, ranking, scores) / size
    return ((2 * mean) ** 2 * (size - 1)).sum()


@dataclass(frozen=True, eq=False)
class EvidenceBatch:
    """What the head reads of A answers in R rankings: evidence [A, F], the rest as RankedForest."""

    evidence: Tensor
    ranks: Tensor
    ranking: Tensor
    trees: tuple[RankedTree, ...]


class RewardObjective(Objective[RankedForest]):
    """Rankings in, a scoring backbone out."""

    name = "reward"

    def __init__(self, model: RewardModel, trees: list[RankedTree], config: Config):
        self.model, self.trees, self.config = model, trees, config
        self.device = pick_device(config.device)
        self.order = EpochOrder(len(trees), config.rankings_per_update, config.seed)

    def modules(self) -> torch.nn.Module:
        return self.model.trained()

    def num_iterations(self) -> int:
        return self.order.updates_per_epoch * self.config.epochs

    def updates(self, iteration: int) -> Iterable[list[RankedForest]]:
        chosen = [self.trees[i] for i in self.order.at(iteration)]
        max_tokens = self.config.microbatch_tokens
        yield list(microbatches(chosen, max_tokens=max_tokens, device=self.device))

    def loss(self, batch: RankedForest) -> LossSums:
        scores = self.model.raw_scores(batch.forest)
        return ranking_loss(scores, batch, self.config, tokens=batch.forest.host.num_tokens)


class HeadObjective(Objective[EvidenceBatch]):
    """Rankings in, a head on a frozen backbone out. evidence: float32 [K, F] by tree index."""

    name = "reward"

    def __init__(
        self,
        model: RewardModel,
        trees: list[RankedTree],
        evidence: Sequence[Tensor],
        config: Config,
    ):
        self.model, self.trees, self.evidence, self.config = model, trees, evidence, config
        self.order = EpochOrder(len(trees), config.rankings_per_update, config.seed)

    def modules(self) -> torch.nn.Module:
        return self.model.head

    def num_iterations(self) -> int:
        return self.order.updates_per_epoch * self.config.epochs

    def updates(self, iteration: int) -> Iterable[list[EvidenceBatch]]:
        chosen = self.order.at(iteration)
        evidence = torch.cat([self.evidence[i] for i in chosen])
        ranks, ranking = stack_ranks([self.trees[i] for i in chosen], evidence.device)
        yield [EvidenceBatch(evidence, ranks, ranking, tuple(self.trees[i] for i in chosen))]

    def loss(self, batch: EvidenceBatch) -> LossSums:
        # no tokens: the backbone has read them once, before
        return ranking_loss(self.model.head(batch.evidence), batch, self.config, tokens=0)


def ranking_loss(
    scores: Tensor, batch: RankedForest | EvidenceBatch, config: Config, *, tokens: int
) -> LossSums:
    """Plackett-Luce with centring, and how the scores order the pairs of the batch."""
    records = [tree.record for tree in batch.trees]
    sizes = [len(tree.ranks) for tree in batch.trees]
    margins = _repeat([record.margin or 0.0 for record in records], sizes, scores)
    loss, count = ranking_nll(
        scores,
        batch.ranks,
        batch.ranking,
        margin=config.margin + margins[:, None],
        weights=_repeat([record.weight for record in records], sizes, scores),
    )
    if config.centring:
        loss = loss + config.centring * centring_penalty(scores, batch.ranks, batch.ranking)
    values = scores.detach()
    pairs = _pairs(np.split(values.cpu().numpy(), _cuts(batch.trees)), batch.trees)
    return LossSums(
        loss=loss,
        count=count,
        tokens=tokens,
        metrics={
            "accuracy": (float(scorecard.agreement(pairs).sum()), len(pairs)),
            "margin": (float((pairs.winner - pairs.loser).sum()), len(pairs)),
            "mean_reward": (float(values.sum()), len(values)),
        },
    )


def _repeat(values: Sequence[float], sizes: Sequence[int], like: Tensor) -> Tensor:
    """What is known of each ranking, for each of its answers [A]."""
    return torch.from_numpy(np.repeat(np.array(values, np.float32), sizes)).to(like.device)


def _cuts(trees: Sequence[RankedTree]) -> np.ndarray:
    return np.cumsum([len(tree.ranks) for tree in trees])[:-1]


def _pairs(scores: list[np.ndarray], trees: Sequence[RankedTree]) -> scorecard.Pairs:
    return scorecard.collect_pairs(scores, [tree.ranks for tree in trees])


@torch.no_grad()
def read_evidence(
    model: RewardModel,
    trees: Sequence[RankedTree],
    config: Config,
    *,
    progress: Progress | None = None,
) -> list[Tensor]:
    """Evidence of the answers of each ranking, float32 [K, F] each."""
    device = pick_device(config.device)
    found: list[Tensor] = []
    with autocast(pick_dtype(config.precision, device), device):
        for batch in microbatches(trees, max_tokens=config.microbatch_tokens, device=device):
            sizes = [len(tree.ranks) for tree in batch.trees]
            found.extend(model.evidence(batch.forest).split(sizes))
            if progress is not None:
                progress.update(len(found))
    return found


@torch.no_grad()
def score_evidence(model: RewardModel, evidence: Sequence[Tensor]) -> list[np.ndarray]:
    """Raw scores of the answers of each ranking, float64 [K] each."""
    return [model.head(known).cpu().numpy().astype(np.float64) for known in evidence]


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
    source = context.input("model")
    device = pick_device(config.device)
    tokenizer = load_tokenizer(source.path)
    backbone = start_model(source.path, config)
    records = comparisons(load_rankings(context.input("feedback").path))
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
    model = RewardModel(backbone, hidden=config.hidden, seed=config.seed).to(device)
    looked_at = trees if config.backbone == "frozen" else _spread(trees, SAMPLE)
    context.progress.start("reading answers", total=len(looked_at), unit="rankings")
    known = read_evidence(model, looked_at, config, progress=context.progress)
    context.progress.finish()
    model.head.standardise(torch.cat(known))
    cost: Notes
    if config.backbone == "frozen":
        model.backbone.requires_grad_(False)
        result = train(HeadObjective(model, trees, known, config), config, context)
        tokens = sum(tree_size(tree.tree) for tree in trees)
        flops = 2.0 * tokens * sum(p.numel() for p in model.parameters())
        cost = cost_notes(result, model, tokens=tokens, flops=flops)
    else:
        drop_inputs(model.backbone, True)
        result = train(RewardObjective(model, trees, config), config, context)
        drop_inputs(model.backbone, False)
        known = read_evidence(model, looked_at, config)
        cost = cost_notes(result, model)
    train_scores = score_evidence(model, known)
    heldout_scores = score_evidence(model, read_evidence(model, heldout, config))
    everything = np.concatenate(train_scores)
    model.shift, spread = float(everything.mean()), float(everything.std())
    model.scale = 1.0 / spread if spread > 1e-6 else 1.0
    report = {
        "train": figures(looked_at, train_scores, seed=config.seed),
        "heldout": figures(heldout, heldout_scores, seed=config.seed),
        "num_train": len(trees),
        "dropped": dropped + dropped_heldout,
        "annotator_kinds": sorted({record.kind for record in records}),
    }
    save_reward_model(model, context.out, report, base=source.id)
    tokenizer.save_into(context.out)
    return _notes(context, report, cost)


def _spread(trees: list[RankedTree], count: int) -> list[RankedTree]:
    """`count` of them from beginning to end, or all where they are fewer."""
    at = np.linspace(0, len(trees) - 1, min(count, len(trees)))
    return [trees[i] for i in np.unique(at.astype(int))]


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
            "train_rankings": report["num_train"],
            "heldout_rankings": held["num_prompts"],
            "dropped": report["dropped"],
        },
        **cost,
    }
