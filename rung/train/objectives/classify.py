"""Classification: the reward model's sibling with a logit per label and a true label to meet.

One label a text: softmax cross-entropy, with optional class weights and label smoothing (Szegedy
et al. 2016, section 7). Several: a sigmoid and a binary cross-entropy for each label.

With `backbone: frozen` only the head learns, from evidence that is read once, and the epoch with
the least validation loss is kept. Temperature (Guo et al. 2017) and thresholds are fitted on the
validation part of the training texts; the held-out texts are only measured on.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from rung.engine.classify import Encoded, encode_texts, pack_texts, read_evidence
from rung.model.adapters import drop_inputs
from rung.model.attention import TorchForest
from rung.model.classifier import Classifier, Labelling, save_classifier
from rung.model.depth import count_layers
from rung.model.load import context_length
from rung.model.precision import pick_device, pick_dtype
from rung.store.context import Notes, Progress, StageContext
from rung.tokens.tokenizer import load_tokenizer
from rung.tokens.views import split_microbatches
from rung.train.cost import cost_notes
from rung.train.label_report import measure, notes_of, say_lengths
from rung.train.label_texts import Texts, class_weights, load_labelled, split_validation
from rung.train.loop import LossSums, Objective, train
from rung.train.optim import TrainConfig
from rung.train.ranked import EpochOrder
from rung.train.start import start_model

_LEAST_VALIDATION = 20  # texts; from fewer neither an epoch nor a temperature can be chosen
_STANDARDISE_ON = 2048  # texts, drawn at random, where the evidence is not needed otherwise


class Config(TrainConfig):
    """Options of `rung classify`."""

    backbone: Literal["frozen", "trained"] | None = Field(
        None, description="frozen: the head alone learns; None: frozen without an adapter"
    )
    epochs: int | None = Field(
        None, ge=1, description="passes over the texts; None: 60 of a head alone, else 3"
    )
    texts_per_update: int = Field(32, ge=1, description="texts in one optimizer update")
    max_tokens: int = Field(512, ge=16, description="tokens read of a text with its template")
    depth: float = Field(
        0.67, gt=0, le=1, description="share of the decoder layers that reads; the rest is not run"
    )
    template: str = Field("{text}", description="the text as the model reads it, {text} once")
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: every label counts the same, however rare"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of a label's weight spread over all labels"
    )
    validation_fraction: float = Field(
        0.1, ge=0, lt=1, description="share of training texts to choose and calibrate on"
    )
    optimizer: Literal["muon", "adamw"] = Field("adamw", description="fine-tuning keeps to AdamW")
    lr: float | None = Field(
        None, gt=0, description="peak AdamW rate; None: 1e-3 of a head alone, else 5e-5"
    )
    adapter_lr: ClassVar[float] = 5e-4

    @model_validator(mode="after")
    def _adapter_needs_a_trained_backbone(self) -> Self:
        if self.adapter != "none" and self.backbone == "frozen":
            raise ValueError("backbone: frozen trains the head alone: leave the adapter out")
        return self

    def resolved(self) -> "Config":
        """With the backbone's mode, and its epochs and rate where none are given."""
        backbone = self.backbone or ("frozen" if self.adapter == "none" else "trained")
        epochs = self.epochs or (60 if backbone == "frozen" else 3)
        lr = self.lr or (1e-3 if backbone == "frozen" else 5e-5)
        return self.model_copy(update={"backbone": backbone, "epochs": epochs, "lr": lr})


def label_loss(
    logits: Tensor, truth: Tensor, *, weights: Tensor | None = None, smoothing: float = 0.0
) -> tuple[Tensor, float]:
    """(sum of losses, what to divide by): their ratio is torch's mean over the same rows.

    logits float [B, C]. truth int64 [B] with one label a text (weights [C] are class weights), or
    float [B, C] with several (weights [C] are those of the positive side).
    """
    if truth.ndim == 1:
        loss = functional.cross_entropy(
            logits, truth, weight=weights, label_smoothing=smoothing, reduction="sum"
        )
        return loss, float(len(truth) if weights is None else weights[truth].sum())
    soft = truth * (1 - smoothing) + 0.5 * smoothing
    loss = functional.binary_cross_entropy_with_logits(
        logits, soft, pos_weight=weights, reduction="sum"
    )
    return loss, float(truth.numel())


def share_right(logits: Tensor, truth: Tensor) -> tuple[float, float]:
    """(decisions that are right, decisions), at thresholds of 1/2 where there are several."""
    if truth.ndim == 1:
        return float((logits.argmax(1) == truth).sum()), float(len(truth))
    return float(((logits > 0) == (truth > 0)).sum()), float(truth.numel())


@dataclass(frozen=True, eq=False)
class Batch:
    """texts: B of them as a forest, or as evidence [B, F] that was read before. truth: [B(, C)]."""

    texts: TorchForest | Tensor
    truth: Tensor


class ClassifyObjective(Objective[Batch]):
    """Texts in, a head and its backbone out. evidence [N, F]: the backbone is frozen then."""

    name = "classify"

    def __init__(
        self,
        model: Classifier,
        data: tuple[Encoded, Texts],
        config: Config,
        *,
        validation: tuple[Encoded, Texts],
        evidence: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.model, self.config = model, config
        self.encoded, texts = data
        self.validation, self.evidence = validation, evidence
        self.device = pick_device(config.device)
        self.truth = torch.from_numpy(texts.truth).to(self.device)
        self.order = EpochOrder(len(texts), config.texts_per_update, config.seed)
        self.weights = None
        if config.class_weights == "balanced":
            weights = class_weights(texts.truth, len(model.labelling.labels))
            self.weights = torch.from_numpy(weights).to(self.device)
        self.best = copy.deepcopy(model.head).requires_grad_(False)
        self.best_loss = float("inf")

    def modules(self) -> nn.Module:
        if self.evidence is None:
            return self.model.trained()
        return nn.ModuleDict({"head": self.model.head, "best": self.best})

    def num_iterations(self) -> int:
        assert self.config.epochs
        return self.order.updates_per_epoch * self.config.epochs

    def updates(self, iteration: int) -> Iterable[list[Batch]]:
        chosen = self.order.at(iteration)
        if self.evidence is not None:
            index = torch.from_numpy(chosen).to(self.device)
            yield [Batch(self.evidence[0][index], self.truth[index])]
            return
        parts = split_microbatches(
            [int(i) for i in chosen], self.encoded.lengths, max_tokens=self.config.microbatch_tokens
        )
        yield [
            Batch(pack_texts([self.encoded.trees[i] for i in part], self.device), self.truth[part])
            for part in parts
        ]

    def loss(self, batch: Batch) -> LossSums:
        if isinstance(batch.texts, Tensor):
            logits, tokens = self.model.head(batch.texts), 0  # the backbone read them before
        else:
            logits, tokens = self.model.logits(batch.texts), batch.texts.host.num_tokens
        smoothing = self.config.label_smoothing
        loss, count = label_loss(logits, batch.truth, weights=self.weights, smoothing=smoothing)
        return LossSums(loss, count, tokens, {"train_accuracy": share_right(logits, batch.truth)})

    def after_iteration(self, iteration: int, metrics: dict[str, float]) -> list[str]:
        """At the end of an epoch: the loss on the validation part; of a head the best is kept."""
        epoch, rest = divmod(iteration + 1, self.order.updates_per_epoch)
        if rest or not len(self.validation[1]):
            return []
        logits = self.validation_logits()
        truth = torch.from_numpy(self.validation[1].truth).to(self.device)
        loss, count = label_loss(logits, truth)
        right, decisions = share_right(logits, truth)
        metrics["validation_loss"] = float(loss) / count
        metrics["validation_accuracy"] = right / decisions
        if metrics["validation_loss"] < self.best_loss:
            self.best_loss = metrics["validation_loss"]
            self.best.load_state_dict(self.model.head.state_dict())
        if self.evidence is not None:
            return []
        return [
            f"epoch {epoch}: validation loss {metrics['validation_loss']:.3f}, "
            f"{100 * metrics['validation_accuracy']:.1f} % right"
        ]

    @torch.no_grad()
    def validation_logits(self) -> Tensor:
        if self.evidence is not None:
            return self.model.head(self.evidence[1])
        drop_inputs(self.model.backbone, False)
        read = evidence_of(self.model, self.validation[0], self.config)
        drop_inputs(self.model.backbone, True)
        return self.model.head(read)

    def state(self) -> dict[str, Any]:
        return {"best_loss": self.best_loss if np.isfinite(self.best_loss) else None}

    def load_state(self, state: dict[str, Any]) -> None:
        best = state["best_loss"]
        self.best_loss = float("inf") if best is None else float(best)

    def finish(self) -> None:
        """Of a head on a frozen backbone take the best epoch; else the last weights stay."""
        if self.evidence is not None and np.isfinite(self.best_loss):
            self.model.head.load_state_dict(self.best.state_dict())


def evidence_of(
    model: Classifier, encoded: Encoded, config: Config, *, progress: Progress | None = None
) -> Tensor:
    """Evidence float32 [N, F] of texts, in order."""
    parts = [model.head.mean.new_zeros(0, len(model.head.mean))]
    done = 0
    for read in read_evidence(
        model,
        encoded.trees,
        microbatch_tokens=config.microbatch_tokens,
        dtype=pick_dtype(config.precision, model.head.mean.device),
    ):
        parts.append(read)
        done += len(read)
        if progress is not None:
            progress.update(done)
    return torch.cat(parts)


def run(context: StageContext, config: Config) -> Notes:
    """Train on most training texts, calibrate on the rest of them, measure on the held-out ones."""
    config = config.resolved()
    source = context.input("model")
    tokenizer = load_tokenizer(source.path)
    data = load_labelled(context.input("labels"))
    backbone = start_model(source.path, config)
    length = min(config.max_tokens, context_length(backbone))
    layers = max(1, round(config.depth * count_layers(backbone)))
    labelling = Labelling(data.labels, data.multi_label, config.template, length, layers)
    fit, validation = split_validation(
        data.train, fraction=config.validation_fraction, seed=config.seed
    )
    if len(validation) < _LEAST_VALIDATION:
        fit, validation = data.train, data.train.take([])
        context.progress.say(
            f"fewer than {_LEAST_VALIDATION} texts to validate on: the last epoch is kept, and"
            " probabilities are not calibrated"
        )
    parts = {"train": fit, "validation": validation, "heldout": data.heldout}
    encoded = {k: encode_texts(part.texts, tokenizer, labelling) for k, part in parts.items()}
    say_lengths(context, encoded, limit=length)
    model = Classifier(backbone, labelling).to(pick_device(config.device))
    known = _read_all(context, model, encoded, config)
    frozen = config.backbone == "frozen"
    objective = ClassifyObjective(
        model,
        (encoded["train"], fit),
        config,
        validation=(encoded["validation"], validation),
        evidence=(known["train"], known["validation"]) if frozen else None,
    )
    drop_inputs(model.backbone, True)
    result = train(objective, config, context)
    drop_inputs(model.backbone, False)
    objective.finish()
    logits = {}
    with torch.no_grad():
        for side in ("validation", "heldout"):
            read = known[side] if frozen else evidence_of(model, encoded[side], config)
            logits[side] = model.head(read).cpu().numpy().astype(np.float64)
    report = measure(model, logits, parts, seed=config.seed)
    report["truncated"] = {side: some.truncated for side, some in encoded.items()}
    save_classifier(model, context.out, report, base=source.id, frozen=frozen)
    tokenizer.save_into(context.out)
    tokens = flops = None
    if frozen:
        tokens = sum(sum(some.lengths) for some in encoded.values())
        flops = 2.0 * tokens * sum(p.numel() for p in model.parameters())
    cost = cost_notes(result, model, tokens=tokens, flops=flops)
    return notes_of(context, report, cost)


def _read_all(
    context: StageContext, model: Classifier, encoded: dict[str, Encoded], config: Config
) -> dict[str, Tensor]:
    """Evidence by part, of a frozen backbone; the head is standardised on that of training."""
    if config.backbone == "trained":
        drawn = np.random.default_rng(config.seed).permutation(len(encoded["train"].trees))
        trees = [encoded["train"].trees[i] for i in drawn[:_STANDARDISE_ON]]
        model.head.standardise(evidence_of(model, Encoded(trees, 0), config))
        return {}
    model.backbone.requires_grad_(False)
    known: dict[str, Tensor] = {}
    for side, some in encoded.items():
        context.progress.start(f"reading {side} texts", total=len(some.trees), unit="texts")
        known[side] = evidence_of(model, some, config, progress=context.progress)
        context.progress.finish()
    model.head.standardise(known["train"])
    return known
