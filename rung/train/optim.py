"""Optimizers and the learning-rate schedule: Muon for matrices, AdamW for everything else."""

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from rung.model.adapter_config import AdapterConfig
from rung.model.precision import Precision
from rung.train.muon import Muon


class TrainConfig(AdapterConfig):
    """What every training stage has in common; stages set their own defaults by subclassing.

    adapter_lr: the default of `lr` where an adapter is trained. Its matrices start small and are
    few, so they want larger steps than whole weights, and AdamW. adapter_microbatch: the same for
    `microbatch_tokens`; who trains an adapter is short of memory, most of which is activations.
    """

    adapter_lr: ClassVar[float] = 3e-4
    adapter_microbatch: ClassVar[int] = 1024

    seed: int = Field(0, description="seed of order, initial weights and sampling")
    optimizer: Literal["muon", "adamw"] = Field(
        "muon", description="muon: Muon for the hidden matrices, AdamW for the rest"
    )
    lr: float | None = Field(
        None, gt=0, description="peak AdamW learning rate; pre-training derives it from the size"
    )
    matrix_lr: float | None = Field(
        None, gt=0, description="peak Muon learning rate (x sqrt(max(1, rows / columns)))"
    )
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW's decay rates")
    momentum: float = Field(0.95, ge=0, lt=1, description="Muon's momentum")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay of matrices")
    warmup: float = Field(0.03, ge=0, le=1, description="share of iterations that warm up")
    decay: float = Field(0.5, ge=0, le=1, description="share of iterations that decay at the end")
    final_lr: float = Field(0.0, ge=0, le=1, description="learning rate at the end / peak")
    microbatch_tokens: int = Field(4096, ge=64, description="tokens in memory at once")
    clip: float = Field(1.0, ge=0, description="largest gradient norm, 0 switches clipping off")
    precision: Precision = Field("auto", description="bf16 where the processor has it, else fp32")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, ...")
    compile: Literal["auto", "always", "never"] = Field(
        "auto", description="compile decoder layers; auto: where it pays within this run"
    )
    checkpoints: int = Field(12, ge=0, description="checkpoints in the course of the stage")
    max_skips: int = Field(
        3, ge=1, description="non-finite updates in a row before going back to a checkpoint"
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_an_adapter(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("adapter", "none") != "none":
            defaults = {
                "lr": cls.adapter_lr,
                "optimizer": "adamw",
                "microbatch_tokens": cls.adapter_microbatch,
            }
            return {**defaults, **values}
        return values


def lr_factor(config: TrainConfig, *, at: float) -> float:
    """Warm-up, constant, linear decay. at: the share of the run that is done, in [0, 1)."""
    if config.warmup and at < config.warmup:
        return at / config.warmup
    left = 1.0 - at
    if config.decay and left < config.decay:
        return config.final_lr + (1.0 - config.final_lr) * left / config.decay
    return 1.0


def build_optimizers(modules: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon on two-dimensional hidden weights, AdamW on embeddings, heads, norms and biases.

    Which is which follows from the module type: a Linear that is not an output head is hidden.
    """
    hidden, other = _split_parameters(modules)
    if config.optimizer == "adamw":
        other, hidden = other + hidden, []
    lr, matrix_lr = config.lr, config.matrix_lr
    assert lr, "the stage's config gives or derives a learning rate"
    assert matrix_lr or not hidden, "and one for matrices where Muon trains them"
    matrices = [p for p in other if p.ndim >= 2]
    vectors = [p for p in other if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=config.betas, fused=True)
    ]
    if hidden:
        optimizers.append(
            Muon(
                hidden,
                lr=matrix_lr or 0.0,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
            )
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def _split_parameters(modules: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(hidden matrices, the rest), each parameter once, in registration order."""
    heads = set()
    for module in modules.modules():
        get_head = getattr(module, "get_output_embeddings", None)
        head = get_head() if callable(get_head) else None
        if head is not None:
            heads.add(id(head.weight))
    hidden_ids = {
        id(module.weight)
        for module in modules.modules()
        if isinstance(module, nn.Linear) and min(module.weight.shape) > 1
    } - heads
    for module in modules.modules():  # a tied head shares the embedding's weight
        if isinstance(module, nn.Embedding):
            hidden_ids.discard(id(module.weight))
    parameters = [p for p in modules.parameters() if p.requires_grad]
    hidden = [p for p in parameters if id(p) in hidden_ids]
    return hidden, [p for p in parameters if id(p) not in hidden_ids]


def set_lr(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Every group's learning rate becomes its peak times `factor`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


def clip_gradients(modules: nn.Module, *, limit: float) -> float:
    """Scale gradients to at most `limit` in total norm (0: only measure); returns the norm."""
    grads = [p.grad for p in modules.parameters() if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(grads))
    if limit and math.isfinite(norm) and norm > limit:
        torch._foreach_mul_(grads, limit / (norm + 1e-6))
    return norm
