"""Continued pre-training: pre-training from a trained model, with old text replayed.

The learning rate is warmed up and decayed again (Gupta et al. 2023), and a share of every batch is
old text (Ibrahim et al. 2024): both against forgetting, which the evaluation measures.
"""

from typing import Any

from pydantic import Field

from rung.errors import DataError
from rung.model.load import context_length
from rung.model.shape import Shape, read_shape
from rung.store.context import Notes, StageContext
from rung.tokens.corpus import load_corpus_tokens
from rung.tokens.stream import DocumentStream, MixedStream, Stream
from rung.tokens.tokenizer import Tokenizer, load_tokenizer
from rung.train.objectives.pretrain import (
    StreamConfig,
    heldout_trees,
    plan_budget,
    say_resolved,
    train_stream,
    with_rates,
)
from rung.train.start import start_model


class Config(StreamConfig):
    """Options of `rung continue`."""

    replay_share: float = Field(0.1, ge=0, lt=1, description="share of old text in every batch")
    relative_lr: float = Field(
        0.5, gt=0, description="peak learning rates / those that fit pre-training at this size"
    )
    tokens_per_parameter: float | None = Field(
        2.0, gt=0, description="tokens to train on per parameter; used where tokens is not given"
    )
    warmup: float = Field(0.1, ge=0, le=1, description="share of iterations that warm up")
    weight_decay: float = Field(0.1, ge=0, description="decoupled weight decay of matrices")


def run(context: StageContext, config: Config) -> Notes:
    """Go on training a model on fresh text."""
    source = context.input("model")
    tokenizer = load_tokenizer(source.path)
    model = start_model(source.path, config).train()
    shape = shape_of(model)
    budget = plan_budget(config, shape, tokenizer)
    say_resolved(context, budget.table())
    stream, counts = build_stream(
        context, config, tokenizer, num_tokens=budget.tokens_per_step, length=shape.context
    )
    return train_stream(
        context,
        with_rates(config, budget, scale=config.relative_lr),
        model=model,
        stream=stream,
        budget=budget,
        shape=shape,
        tokenizer=tokenizer,
        heldout=heldout_trees(context, tokenizer, config, length=shape.context),
        counts=counts,
        base=source.id,
    )


def build_stream(
    context: StageContext,
    config: Config,
    tokenizer: Tokenizer,
    *,
    num_tokens: int,
    length: int,
) -> tuple[Stream, dict[str, int]]:
    """Fresh text, mixed with old text where a replay corpus and a share are given."""
    path = context.input("corpus").file("documents.parquet")
    fresh = load_corpus_tokens(path, tokenizer, split="train")
    counts = {"corpus_tokens": fresh.num_tokens, "corpus_documents": len(fresh)}
    old = context.optional("replay")
    if old is None and config.replay_share and "replay_share" in config.model_fields_set:
        raise DataError(
            f"replay_share: {config.replay_share} needs the old text: name its corpus in the role "
            "replay, or set the share to 0"
        )
    if old is None or not config.replay_share:
        context.progress.say("no replay of old text: earlier domains will be forgotten faster")
        stream: Stream = DocumentStream(
            fresh, seed=config.seed, tokens_per_batch=num_tokens, context=length
        )
        return stream, counts
    replay = load_corpus_tokens(old.file("documents.parquet"), tokenizer, split="train")
    counts["replay_tokens"] = replay.num_tokens
    stream = MixedStream(
        fresh,
        replay,
        share=config.replay_share,
        seed=config.seed,
        tokens_per_batch=num_tokens,
        context=length,
        names=(context.names.get("corpus", "corpus"), context.names.get("replay", "replay")),
    )
    return stream, counts


def shape_of(model: Any) -> Shape:
    """The dimensions of a loaded model, for budgets and FLOP."""
    return read_shape(model.config, context=context_length(model))
