"""The model that a stage starts from, as its config trains it: whole, or under a new adapter."""

import math
from pathlib import Path

from rung.model.adapter_config import check_adapter
from rung.model.adapters import add_adapter, attach_adapter, saved_bits
from rung.model.heads import RewardModel, load_reward_model
from rung.model.load import load_model, read_config
from rung.model.memory import check_tuning_memory
from rung.model.precision import pick_device, pick_dtype
from rung.model.shape import read_shape
from rung.model.types import PreTrainedModel
from rung.store.adapter import base_id, layers_below
from rung.store.artefact import Artefact
from rung.train.optim import TrainConfig


def start_model(folder: Path, config: TrainConfig) -> PreTrainedModel:
    """The model of `folder`, in evaluation mode. With `adapter` all below it is merged and frozen,
    so the model with its adapter off is exactly the one of `folder`."""
    device = pick_device(config.device)
    check_adapter(config, device)
    _check_memory(folder, config)
    model = load_model(folder, device=device)
    adapt(model, config)
    return model


def adapt(model: PreTrainedModel, config: TrainConfig) -> None:
    """Put the adapter that `config` asks for into `model`; nothing where it asks for none."""
    dtype = pick_dtype(config.precision, pick_device(config.device))
    add_adapter(model, config, dtype=dtype, seed=config.seed)


def start_policy(
    source: Artefact, judge: Artefact, config: TrainConfig
) -> tuple[PreTrainedModel, RewardModel]:
    """The policy, and the reward model that judges it, frozen.

    Where both are adapters over the same weights (the reward model was trained on the artefact
    that the policy starts from) these are in memory once, with two adapters by name.
    """
    device = pick_device(config.device)
    check_adapter(config, device)
    _check_memory(source.path, config)
    policy = load_model(source.path, device=device)
    alike = base_id(judge.path) == source.id and saved_bits(judge.path) == config.base_bits
    if config.adapter != "none" and alike:
        dtype = pick_dtype(config.precision, device)
        attach_adapter(policy, judge.path, name="reward", dtype=dtype, bits=config.base_bits)
        scorer = load_reward_model(judge.path, device=device, backbone=policy, adapter="reward")
    else:
        scorer = load_reward_model(judge.path, device=device)
    scorer.requires_grad_(False)
    adapt(policy, config)  # last: freezing the reward model froze what is shared
    return policy, scorer


def _check_memory(folder: Path, config: TrainConfig) -> None:
    """ResourceError where training the model of `folder` cannot fit, before weights are read."""
    if pick_device(config.device).type != "cpu":
        return
    model = read_config(layers_below(folder)[-1])
    # a stage whose updates are bounded in tokens has no larger microbatches than those
    tokens = min(config.microbatch_tokens, getattr(config, "tokens_per_step", None) or math.inf)
    check_tuning_memory(
        read_shape(model, context=int(tokens)),
        model.vocab_size,
        tokens_per_microbatch=int(tokens),
        optimizer=config.optimizer,
        lora_r=0 if config.adapter == "none" else config.lora_r,
        base_bits=config.base_bits or 16,
    )
