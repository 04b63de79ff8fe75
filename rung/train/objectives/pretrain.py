"""Pre-training: next-token prediction on documents, from random weights.

The loss is the negative log-likelihood of every token after the first (Radford et al. 2018,
equation 1); the batch is a forest of documents, so none sees another.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from rung.engine.generate import generate
from rung.engine.sampling import Sampling
from rung.model.adapters import save_trained, trained_part
from rung.model.attention import TorchForest, to_torch
from rung.model.budget import Budget, BudgetConfig, resolve_budget
from rung.model.build import build_model
from rung.model.forward import weighted_nll
from rung.model.memory import check_memory
from rung.model.precision import autocast, pick_device, pick_dtype
from rung.model.shape import ModelConfig, Shape, resolve
from rung.model.types import PreTrainedModel
from rung.store.context import Notes, StageContext
from rung.tokens.corpus import CorpusTokens, load_corpus_tokens
from rung.tokens.forest import Tree, document, pack, tree_size
from rung.tokens.stream import DocumentStream, Stream
from rung.tokens.tokenizer import Tokenizer, load_tokenizer
from rung.train.compiled import TOKEN_BUCKET, compile_layers, should_compile
from rung.train.cost import cost_notes, share_of_full
from rung.train.loop import LossSums, Objective, Sample, train
from rung.train.optim import TrainConfig


class StreamConfig(TrainConfig):
    """What pre-training and continued pre-training share."""

    tokens: int | None = Field(None, gt=0, description="tokens to train on in all")
    tokens_per_parameter: float | None = Field(
        None, gt=0, description="the same per parameter; used where tokens is not given"
    )
    tokens_per_step: int | None = Field(None, gt=0, description="tokens of one optimizer update")
    microbatch_tokens: int = Field(8192, ge=64, description="tokens in memory at once")
    heldout_tokens: int = Field(
        8192, ge=0, description="held-out tokens for the curve beside the loss; 0: none"
    )
    looks: int = Field(6, ge=0, description="times to measure held-out loss and show a sample")
    sample_prompt: str = Field("", description="how the sample shown now and then begins")


class Config(StreamConfig):
    """Options of `rung pretrain`."""

    model: ModelConfig = Field(ModelConfig(), description="the size dial and its overrides")
    weight_decay: float = Field(0.1, ge=0, description="decoupled weight decay of matrices")
    takes_adapter: ClassVar[bool] = False

    @model_validator(mode="after")
    def _has_a_shape(self) -> Self:
        """A size that does not exist is refused with the recipe, not after curation."""
        resolve(self.model)
        return self


@dataclass(frozen=True)
class HeldOut:
    """Held-out documents, whole, as trees; num_bytes: of their texts, for bits per byte."""

    trees: list[Tree]
    num_bytes: int


class StreamObjective(Objective[TorchForest]):
    """Batches of a document stream in, next-token losses out."""

    name = "pretrain"

    def __init__(
        self,
        model: PreTrainedModel,
        stream: Stream,
        *,
        num_steps: int,
        config: StreamConfig,
        tokenizer: Tokenizer,
        heldout: HeldOut | None = None,
        bucket: int = 0,
    ) -> None:
        self.model, self.stream, self.config = model, stream, config
        self.num_steps, self.tokenizer = num_steps, tokenizer
        self.device = pick_device(config.device)
        self.heldout = heldout
        self._samples: list[Sample] = []
        self.bucket = bucket

    def modules(self) -> nn.Module:
        return trained_part(self.model)

    def num_iterations(self) -> int:
        return self.num_steps

    def updates(self, iteration: int) -> Iterable[list[TorchForest]]:
        trees = self.stream.batch(iteration)
        yield [
            to_torch(pack(self._pad(part)), self.device)
            for part in split_trees(trees, max_tokens=self.config.microbatch_tokens)
        ]

    def loss(self, batch: TorchForest) -> LossSums:
        count = float(batch.host.weight.sum())
        nll = weighted_nll(self.model, batch)
        return LossSums(nll, count, batch.host.num_tokens)

    def after_iteration(self, iteration: int, metrics: dict[str, float]) -> list[str]:
        looks = self.config.looks
        if not looks or (iteration + 1) % math.ceil(self.num_steps / looks):
            return []
        lines = []
        if self.heldout:
            loss, bpb = self._heldout_loss(self.heldout)
            metrics |= {"heldout_loss": loss, "heldout_bpb": bpb}
            lines.append(f"held-out loss {loss:.3f} nats per token, {bpb:.3f} bits per byte")
        written = self._sample()
        self._samples.append(Sample(self.config.sample_prompt, written))
        return [*lines, f"sample: {self.config.sample_prompt + written!r}"]

    def take_samples(self) -> list[Sample]:
        taken, self._samples = self._samples, []
        return taken

    def _pad(self, trees: list[Tree]) -> list[Tree]:
        """An untrained root of pads that rounds the token count up, for compiled layers."""
        if not self.bucket:
            return trees
        short = -sum(tree_size(tree) for tree in trees) % self.bucket
        if not short:
            return trees
        pads = np.full(short, self.tokenizer.pad, dtype=np.int32)
        return [*trees, document(pads, np.zeros(short, dtype=np.float32))]

    @torch.no_grad()
    def _heldout_loss(self, heldout: HeldOut) -> tuple[float, float]:
        """(nats per token, bits per byte of the text)."""
        forest = to_torch(pack(heldout.trees), self.device)
        with (
            autocast(pick_dtype(self.config.precision, self.device), self.device),
            torch.compiler.set_stance("force_eager"),
        ):
            nll = float(weighted_nll(self.model, forest))
        bits = nll / math.log(2)
        return nll / float(forest.host.weight.sum()), bits / heldout.num_bytes

    def _sample(self) -> str:
        prompt = np.append(
            np.int32(self.tokenizer.bos), self.tokenizer.encode(self.config.sample_prompt)
        )
        sampling = Sampling(
            max_new_tokens=40, temperature=0.7, stop_ids=self.tokenizer.stop_ids, seed=0
        )
        done = generate(self.model, [prompt], sampling)[0][0]
        return self.tokenizer.decode(done.ids)


def split_trees(trees: list[Tree], *, max_tokens: int) -> list[list[Tree]]:
    """`trees` in order in as few parts as hold about max_tokens each, of like size."""
    total = sum(tree_size(tree) for tree in trees)
    # the begin tokens of pieces come on top of what is trained: an eighth more is still one part
    num_parts = max(1, math.ceil(total / (max_tokens * 1.125)))
    parts: list[list[Tree]] = [[] for _ in range(num_parts)]
    done = 0
    for tree in trees:
        parts[min(num_parts - 1, done * num_parts // total)].append(tree)
        done += tree_size(tree)
    return [part for part in parts if part]


def run(context: StageContext, config: Config) -> Notes:
    """Train a model of the asked size from random weights on the corpus's training split."""
    tokenizer_artefact = context.input("tokenizer")
    tokenizer = load_tokenizer(tokenizer_artefact.path)
    shape = resolve(config.model)
    budget = plan_budget(config, shape, tokenizer)
    say_resolved(context, [*shape.table(), *budget.table()])
    check_memory(
        shape,
        tokenizer.vocab_size,
        tokens_per_microbatch=min(config.microbatch_tokens, budget.tokens_per_step),
        optimizer=config.optimizer,
    )
    path = context.input("corpus").file("documents.parquet")
    corpus = load_corpus_tokens(path, tokenizer, split="train")
    stream = DocumentStream(
        corpus,
        seed=config.seed,
        tokens_per_batch=budget.tokens_per_step,
        context=shape.context,
        name=context.names.get("corpus", "corpus"),
    )
    model = build_model(shape, tokenizer, seed=config.seed).to(pick_device(config.device))
    heldout = heldout_trees(context, tokenizer, config, length=shape.context)
    return train_stream(
        context,
        with_rates(config, budget),
        model=model,
        stream=stream,
        budget=budget,
        shape=shape,
        tokenizer=tokenizer,
        heldout=heldout,
        counts={"corpus_tokens": corpus.num_tokens, "corpus_documents": len(corpus)},
    )


def plan_budget(config: StreamConfig, shape: Shape, tokenizer: Tokenizer) -> Budget:
    """Tokens, batch and learning rates: what the config gives, else what the size implies."""
    return resolve_budget(
        BudgetConfig(
            optimizer=config.optimizer,
            tokens=config.tokens,
            tokens_per_parameter=config.tokens_per_parameter,
            tokens_per_step=config.tokens_per_step,
            learning_rate_adamw=config.lr,
            learning_rate_muon=config.matrix_lr,
        ),
        shape,
        vocab=tokenizer.vocab_size,
    )


def with_rates(config: StreamConfig, budget: Budget, *, scale: float = 1.0) -> StreamConfig:
    """`config` with the learning rates of the budget where it gives none."""
    rates = {
        "lr": config.lr or budget.learning_rate_adamw * scale,
        "matrix_lr": config.matrix_lr or budget.learning_rate_muon * scale,
    }
    return config.model_copy(update=rates)


def say_resolved(context: StageContext, table: list[tuple[str, str, str]]) -> None:
    """The resolved values, each with where it came from."""
    for name, value, origin in table:
        context.progress.say(f"{name:>20} {value:<12} {origin}")


def heldout_trees(
    context: StageContext, tokenizer: Tokenizer, config: StreamConfig, *, length: int
) -> HeldOut | None:
    """A fixed draw of held-out documents of about config.heldout_tokens tokens."""
    if not config.heldout_tokens:
        return None
    path = context.input("corpus").file("documents.parquet")
    corpus = load_corpus_tokens(path, tokenizer, split="heldout")
    return _draw(corpus, config.heldout_tokens, length=length)


def _draw(corpus: CorpusTokens, num_tokens: int, *, length: int) -> HeldOut:
    trees: list[Tree] = []
    num_bytes = 0
    left = num_tokens
    for index in np.random.default_rng(0).permutation(len(corpus)):
        if left <= 0:
            break
        pieces = corpus.pieces(int(index), context=length)
        trees += pieces
        num_bytes += int(corpus.num_bytes[index])
        left -= sum(tree_size(piece) for piece in pieces)
    return HeldOut(trees, num_bytes)


def train_stream(
    context: StageContext,
    config: StreamConfig,
    *,
    model: PreTrainedModel,
    stream: Stream,
    budget: Budget,
    shape: Shape,
    tokenizer: Tokenizer,
    heldout: HeldOut | None,
    counts: dict[str, int],
    base: str = "",
) -> Notes:
    """Train on a stream, save the model with its tokenizer, say what it cost.

    base: id of the artefact that the model was loaded from, where it was.
    """
    num_tokens = budget.num_steps * budget.tokens_per_step
    flops = shape.flops_per_token(tokenizer.vocab_size, round(stream.mean_length)) * num_tokens
    flops *= share_of_full(model)
    device = pick_device(config.device)
    compiled = should_compile(config, flops=flops, device=device, say=context.progress.say)
    if compiled:
        compile_layers(model)
    objective = StreamObjective(
        model,
        stream,
        num_steps=budget.num_steps,
        config=config,
        tokenizer=tokenizer,
        heldout=heldout,
        bucket=TOKEN_BUCKET if compiled else 0,
    )
    result = train(objective, config, context)
    save_trained(model, context.out, base=base)
    tokenizer.save_into(context.out)
    return {
        "counts": {**counts, "parameters": shape.num_parameters(tokenizer.vocab_size)},
        "resolved": {name: [value, origin] for name, value, origin in budget.table()},
        "compiled": compiled,
        **cost_notes(result, model, tokens=num_tokens, flops=flops),
    }
