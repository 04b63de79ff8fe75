"""DPO: the reward model's sibling without a reward model; the policy itself is the score.

Rafailov et al. 2023, equation 7: with h = beta (log pi(y) - log pi_ref(y)) the implicit reward of
an answer, the loss of a pair is -log sigmoid(h_chosen - h_rejected). Label smoothing e is
"conservative DPO" (Mitchell 2023): (1 - e) times that plus e times the loss of the swapped pair.
The optional likelihood term on the chosen answer, per token, is Pang et al. 2024, equation 2.

All answers of a prompt are in one forest, so K answers cost K + 1 segments and give up to
K (K - 1) / 2 pairs. Reference log-probabilities are computed once and kept in the run folder.

That the chosen log-probability may fall, too, is no fault: the loss asks for a growing gap only.
Where it falls far, raise nll_weight or beta.
"""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from rung.errors import DataError
from rung.feedback.rankings import load_rankings, split_by_prompt
from rung.model.adapters import save_trained, trained_part
from rung.model.forward import segment_sums, target_logps
from rung.model.load import context_length
from rung.model.precision import autocast, pick_device, pick_dtype
from rung.model.types import PreTrainedModel
from rung.store.context import Notes, StageContext
from rung.tokens.tokenizer import load_tokenizer
from rung.train.cost import cost_notes
from rung.train.loop import LossSums, Objective, train
from rung.train.optim import TrainConfig
from rung.train.ranked import EpochOrder, RankedForest, RankedTree, encode_rankings, microbatches
from rung.train.reference import cached_logps
from rung.train.scorecard import ranked_pairs
from rung.train.start import start_model


class Config(TrainConfig):
    """Options of `rung dpo`."""

    epochs: int = Field(2, ge=1, description="passes over the training rankings")
    rankings_per_update: int = Field(16, ge=1, description="prompts in one optimizer update")
    microbatch_tokens: int = Field(4096, ge=64, description="tokens in memory at once")
    heldout_fraction: float = Field(0.1, gt=0, lt=1, description="share of prompts held out")
    pairs: Literal["all", "best_worst"] = Field(
        "all", description="all strictly ordered pairs of a ranking, or its best against its worst"
    )
    beta: float = Field(0.1, gt=0, description="strength of the tie to the reference")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="share of labels taken as wrong")
    nll_weight: float = Field(0.0, ge=0, description="weight of the chosen answers' likelihood")
    optimizer: Literal["muon", "adamw"] = Field("adamw", description="fine-tuning keeps to AdamW")
    lr: float = Field(1e-4, gt=0, description="peak AdamW learning rate")
    adapter_lr: ClassVar[float] = 1e-4
    takes_dropout: ClassVar[bool] = False


def dpo_loss(margins: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Losses [P] from margins [P] = implicit reward of the chosen minus that of the rejected."""
    e = label_smoothing
    return -(1 - e) * logsigmoid(margins) - e * logsigmoid(-margins)


def chosen_nll(logps: Tensor, lengths: Tensor, pairs: Tensor) -> Tensor:
    """Negative log-likelihood per token of the chosen answer of each pair [P]."""
    return -(logps / lengths).index_select(0, pairs[:, 0])


def make_pairs(tree: RankedTree, which: Literal["all", "best_worst"]) -> np.ndarray:
    """(chosen, rejected) answer indices [P, 2]; none where all answers tie."""
    pairs = ranked_pairs(tree.ranks)
    if which == "all" or not len(pairs):
        return pairs
    return np.array([[int(np.argmin(tree.ranks)), int(np.argmax(tree.ranks))]])


class DPOObjective(Objective[RankedForest]):
    """Pairs in, a policy out. reference: answer log-probabilities [K] by tree index."""

    name = "dpo"

    def __init__(
        self,
        model: PreTrainedModel,
        trees: Sequence[RankedTree],
        reference: Sequence[np.ndarray],
        config: Config,
    ):
        self.model, self.trees, self.config = model, trees, config
        self.reference = {id(tree): logps for tree, logps in zip(trees, reference, strict=True)}
        self.device = pick_device(config.device)
        self.order = EpochOrder(len(trees), config.rankings_per_update, config.seed)

    def modules(self) -> torch.nn.Module:
        return trained_part(self.model)

    def num_iterations(self) -> int:
        return self.order.updates_per_epoch * self.config.epochs

    def updates(self, iteration: int) -> Iterable[list[RankedForest]]:
        chosen = [self.trees[i] for i in self.order.at(iteration)]
        max_tokens = self.config.microbatch_tokens
        yield list(microbatches(chosen, max_tokens=max_tokens, device=self.device))

    def loss(self, batch: RankedForest) -> LossSums:
        config = self.config
        per_token, _ = target_logps(self.model, batch.forest)
        logps = answer_logps(per_token, batch)
        reference, pairs, lengths = self._targets(batch)
        rewards = config.beta * (logps - reference)
        chosen, rejected = rewards[pairs[:, 0]], rewards[pairs[:, 1]]
        losses = dpo_loss(chosen - rejected, label_smoothing=config.label_smoothing)
        if config.nll_weight:
            losses = losses + config.nll_weight * chosen_nll(logps, lengths, pairs)
        count = len(pairs)

        def total(values: Tensor) -> tuple[float, float]:
            return float(values.detach().sum()), count

        return LossSums(
            loss=losses.sum(),
            count=count,
            tokens=batch.forest.host.num_tokens,
            metrics={
                "rewards/chosen": total(chosen),
                "rewards/rejected": total(rejected),
                "rewards/margins": total(chosen - rejected),
                "rewards/accuracies": total((chosen > rejected).float()),
                "logps/chosen": total(logps[pairs[:, 0]]),
                "logps/rejected": total(logps[pairs[:, 1]]),
            },
        )

    def _targets(self, batch: RankedForest) -> tuple[Tensor, Tensor, Tensor]:
        """(reference [A], pairs [P, 2] as answer indices of the microbatch, lengths [A])."""
        reference, pairs, lengths, first = [], [], [], 0
        for tree in batch.trees:
            reference.append(self.reference[id(tree)])
            lengths.append(tree.lengths)
            pairs.append(make_pairs(tree, self.config.pairs) + first)
            first += len(tree.ranks)
        device = batch.ranks.device
        return (
            torch.from_numpy(np.concatenate(reference).astype(np.float32)).to(device),
            torch.from_numpy(np.concatenate(pairs)).to(device),
            torch.from_numpy(np.concatenate(lengths)).to(device),
        )


def answer_logps(per_token: Tensor, batch: RankedForest) -> Tensor:
    """Log-probability of each answer [A], from those of the trained tokens [N]."""
    sums = segment_sums(per_token, batch.forest)
    return sums[torch.from_numpy(batch.forest.host.answers).to(sums.device)]


@torch.no_grad()
def measure(
    objective: DPOObjective, trees: Sequence[RankedTree], reference: Sequence[np.ndarray]
) -> dict[str, float]:
    """Mean loss and metrics of the policy on `trees` (pairs that it was not trained on)."""
    config = objective.config
    view = DPOObjective(objective.model, trees, reference, config)
    sums: dict[str, float] = {}
    count, num_pairs = 0.0, 0
    with autocast(pick_dtype(config.precision, view.device), view.device):
        for batch in microbatches(trees, max_tokens=config.microbatch_tokens, device=view.device):
            part = view.loss(batch)
            count += part.count
            num_pairs += int(part.count)
            sums["loss"] = sums.get("loss", 0.0) + float(part.loss)
            for name, (value, _) in part.metrics.items():
                sums[name] = sums.get(name, 0.0) + value
    return {name: value / count for name, value in sums.items()} | {"num_pairs": num_pairs}


def run(context: StageContext, config: Config) -> Notes:
    """Train the policy on pairs; the model it starts from is its reference."""
    source = context.input("model")
    device = pick_device(config.device)
    tokenizer = load_tokenizer(source.path)
    model = start_model(source.path, config)
    feedback = context.input("feedback")
    splits = split_by_prompt(
        load_rankings(feedback.path), heldout_fraction=config.heldout_fraction, seed=config.seed
    )
    trees, heldout = (_usable(list(part), tokenizer, model, config, context) for part in splits)
    identity = {
        "model": source.id,
        "feedback": feedback.id,
        "precision": str(pick_dtype(config.precision, device)),
        "base_bits": config.base_bits,
        "seed": config.seed,
        "pairs": config.pairs,
        "heldout_fraction": config.heldout_fraction,
    }
    reference = cached_logps(
        model,
        [*trees, *heldout],
        config=config,
        microbatch_tokens=config.microbatch_tokens,
        folder=context.run,
        identity=identity,
    )
    objective = DPOObjective(model, trees, reference[: len(trees)], config)
    result = train(objective, config, context)
    held = measure(objective, heldout, reference[len(trees) :])
    save_trained(model, context.out, base=source.id)
    tokenizer.save_into(context.out)
    context.progress.say(
        f"held-out pairs: loss {held['loss']:.4f} (ln 2 = 0.6931 before training), "
        f"accuracy {held['rewards/accuracies']:.3f} over {held['num_pairs']:.0f} pairs"
    )
    return {
        "figures": {f"heldout/{name}": value for name, value in held.items()},
        "counts": {"train_rankings": len(trees), "heldout_rankings": len(heldout)},
        **cost_notes(result, model, extra_forwards=1 / config.epochs),
    }


def _usable(
    records: list[Any],
    tokenizer: Any,
    model: PreTrainedModel,
    config: Config,
    context: StageContext,
) -> list[RankedTree]:
    """Encoded rankings that hold at least one strict pair; what is left out is said."""
    if not records:
        raise DataError(
            "one side of the split by prompt is empty: collect more rankings, or change "
            f"heldout_fraction (now {config.heldout_fraction})"
        )
    trees, dropped = encode_rankings(records, tokenizer, max_tokens=context_length(model))
    usable = [tree for tree in trees if len(ranked_pairs(tree.ranks))]
    if dropped or len(usable) < len(trees):
        context.progress.say(
            f"{len(records)} rankings: {dropped} longer than the context and "
            f"{len(trees) - len(usable)} with nothing but ties are left out"
        )
    if not usable:
        raise DataError(f"none of {len(records)} rankings has two answers of different rank")
    return usable
