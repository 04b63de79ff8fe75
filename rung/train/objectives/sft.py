"""Supervised fine-tuning: pre-training's loss on conversations, at the assistant's tokens only.

Ids and weights come together from the one renderer (rung/tokens/chat.py), so what is trained is
what is shown at chat time. The sum of weighted token losses is divided by the sum of weights of the
whole update.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from rung.errors import DataError
from rung.model.adapters import save_trained, trained_part
from rung.model.attention import TorchForest, to_torch
from rung.model.forward import weighted_nll
from rung.model.load import context_length
from rung.model.precision import pick_device
from rung.model.types import PreTrainedModel
from rung.store.artefact import Artefact
from rung.store.context import Notes, StageContext
from rung.text.messages import Message
from rung.tokens.forest import pack
from rung.tokens.tokenizer import load_tokenizer
from rung.tokens.views import ConversationView, conversation_view, plan_batches, split_microbatches
from rung.train.cost import cost_notes, share_of_full
from rung.train.loop import LossSums, Objective, train
from rung.train.objectives.continued import shape_of
from rung.train.optim import TrainConfig
from rung.train.start import start_model
from rung.train.watch import Watch


class Config(TrainConfig):
    """Options of `rung sft`."""

    epochs: int = Field(2, ge=1, description="passes over the training conversations")
    max_steps: int | None = Field(
        None, ge=1, description="optimizer updates at most: ends in the middle of an epoch"
    )
    tokens_per_step: int = Field(4096, ge=64, description="tokens of one optimizer update")
    overlong: Literal["drop", "shorten"] = Field(
        "drop", description="a conversation longer than the context: drop it, or its last turns"
    )
    lr: float | None = Field(5e-4, gt=0, description="peak AdamW learning rate")
    matrix_lr: float | None = Field(0.005, gt=0, description="peak Muon learning rate")
    adapter_lr: ClassVar[float] = 5e-4
    decay: float = Field(0.9, ge=0, le=1, description="share of iterations that decay at the end")


class SFTObjective(Objective[TorchForest]):
    """Conversations in, an assistant out."""

    name = "sft"

    def __init__(self, model: PreTrainedModel, view: ConversationView, config: Config) -> None:
        self.model, self.view, self.config = model, view, config
        self.device = pick_device(config.device)
        plan = [
            batch
            for epoch in range(config.epochs)
            for batch in plan_batches(
                view.lengths,
                budget=config.tokens_per_step,
                seed=config.seed,
                epoch=epoch,
                what="conversation",
            )
        ]
        self.plan = plan[: config.max_steps]

    @property
    def num_tokens(self) -> int:
        """Tokens of all updates."""
        lengths = self.view.lengths
        return sum(lengths[index] for batch in self.plan for index in batch)

    def modules(self) -> nn.Module:
        return trained_part(self.model)

    def num_iterations(self) -> int:
        return len(self.plan)

    def updates(self, iteration: int) -> Iterable[list[TorchForest]]:
        limit = self.config.microbatch_tokens
        parts = split_microbatches(self.plan[iteration], self.view.lengths, max_tokens=limit)
        yield [to_torch(pack([self.view.trees[i] for i in part]), self.device) for part in parts]

    def loss(self, batch: TorchForest) -> LossSums:
        count = float(batch.host.weight.sum())
        return LossSums(
            weighted_nll(self.model, batch),
            count,
            batch.host.num_tokens,
            {"supervised_share": (float(len(batch.host.weight)), float(batch.host.num_tokens))},
        )


def run(context: StageContext, config: Config) -> Notes:
    """Fine-tune a model on the conversations of a dataset."""
    source = context.input("model")
    tokenizer = load_tokenizer(source.path)
    rows = read_rows(context.input("dataset").file("train.jsonl"))
    model = start_model(source.path, config).train()
    length = min(context_length(model), config.tokens_per_step)
    view = conversation_view(rows, tokenizer, context=length, overlong=config.overlong)
    context.progress.say(view.report.describe())
    objective = SFTObjective(model, view, config)
    asked = questions(context.input("dataset"))
    objective.watch = Watch(model, tokenizer, asked, config, total=objective.num_iterations())
    result = train(objective, config, context)
    save_trained(model, context.out, base=source.id)
    tokenizer.save_into(context.out)
    shape = shape_of(model)
    tokens = objective.num_tokens
    mean_length = max(1, view.report.total_tokens // view.report.kept)
    flops = shape.flops_per_token(tokenizer.vocab_size, mean_length) * tokens
    flops *= share_of_full(model)
    return {
        "counts": {
            "conversations": view.report.kept,
            "supervised_tokens": view.report.supervised_tokens,
            "total_tokens": view.report.total_tokens,
            "tokens_seen": tokens,
            "shortened": view.report.shortened,
            **{f"dropped_{cause}": n for cause, n in view.report.dropped.items()},
        },
        **cost_notes(result, model, tokens=tokens, flops=flops),
    }


def questions(dataset: Artefact) -> Iterator[list[Message]]:
    """Conversations of a dataset that are held out of training."""
    for name in ("prompts.jsonl", "heldout.jsonl"):
        if name in dataset.files:
            with dataset.file(name).open(encoding="utf-8") as lines:
                yield from (json.loads(line)["messages"] for line in lines)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a dataset artefact's JSONL file."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    if not rows:
        raise DataError(f"{path} has no row: there is nothing to train on")
    return rows
