"""Key names that users bring from other trainers: renamed with a note, or explained.

An alias only stands for a key that means the same. Where none does, the message says which of our
keys come nearest and why they are not the same.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from rung.config import Config
from rung.errors import ConfigError

# Alias -> our keys, the first that the stage has is taken. A key may be a role, or a path.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "learning_rate": ("lr",),
    "peak_lr": ("lr",),
    "num_train_epochs": ("epochs",),
    "num_epochs": ("epochs",),
    "n_epochs": ("epochs",),
    "warmup_ratio": ("warmup",),
    "lr_warmup_ratio": ("warmup",),
    "max_grad_norm": ("clip",),
    "grad_clip": ("clip",),
    "random_seed": ("seed",),
    "lora_rank": ("lora_r",),
    "lora_target": ("lora_targets",),
    "lora_target_modules": ("lora_targets",),
    "target_modules": ("lora_targets",),
    "beta": ("kl_coefficient",),
    "pref_beta": ("beta",),
    "dpo_beta": ("beta",),
    "rl_beta": ("beta", "kl_coefficient"),
    "kl_coef": ("kl_coefficient", "beta"),
    "init_kl_coef": ("kl_coefficient", "beta"),
    "cliprange": ("clip_range",),
    "num_generations": ("answers_per_prompt", "answers"),
    "max_length": ("model.context", "max_tokens"),
    "cutoff_len": ("model.context", "max_tokens"),
    "sequence_len": ("model.context", "max_tokens"),
    "max_seq_length": ("model.context", "max_tokens"),
    "block_size": ("model.context",),
    "max_completion_length": ("max_new_tokens",),
    "response_length": ("max_new_tokens",),
    "model_name_or_path": ("model",),
    "base_model": ("model",),
    "model_name": ("model",),
    "reward_model": ("reward",),
    "reward_model_path": ("reward",),
    "train_dataset": ("dataset", "feedback", "corpus"),
    "dataset_name": ("dataset", "feedback", "corpus"),
    "datasets": ("dataset", "feedback", "corpus", "corpora", "files"),
    "dataset": ("feedback", "corpus", "corpora", "files"),
    "data_files": ("files",),
    "train_file": ("files",),
    "val_size": ("heldout_fraction",),
    "test_size": ("heldout_fraction",),
    "eval_split_ratio": ("heldout_fraction",),
    "label_smoothing_factor": ("label_smoothing",),
    "rpo_alpha": ("nll_weight",),
    "per_device_train_batch_size": ("rankings_per_update", "texts_per_update"),
    "train_batch_size": ("rankings_per_update", "texts_per_update"),
    "batch_size": ("rankings_per_update", "texts_per_update"),
    "global_batch_size": ("rankings_per_update", "texts_per_update"),
}

_TOKENS = (
    "an update is counted in tokens, as rows differ in length: set `tokens_per_step` (rows x their "
    "mean length; `rung data show` tells it) and `microbatch_tokens` for what fits in memory"
)
_CONTEXT = (
    "rows may be as long as the model's own context, which is set when it is built "
    "(`model.context` of pretrain); longer ones are dropped and counted, or shortened with "
    "`overlong: shorten`"
)
_FORMATS = "16-bit arithmetic is `precision`: auto, bf16 or fp32"
_ROWS = (
    "an update is whole: set `rankings_per_update` to rows x accumulation steps, and "
    "`microbatch_tokens` for what fits in memory"
)
# What has no equivalent, and the way out. A pair: without and with `rankings_per_update`.
EXPLAINED: Mapping[str, str | tuple[str, str]] = {
    **dict.fromkeys(("max_length", "cutoff_len", "sequence_len", "max_seq_length"), _CONTEXT),
    **dict.fromkeys(
        ("per_device_train_batch_size", "train_batch_size", "batch_size", "global_batch_size"),
        _TOKENS,
    ),
    **dict.fromkeys(("micro_batch_size", "gradient_accumulation_steps"), (_TOKENS, _ROWS)),
    "output_dir": "results go into the store, under the recipe's name and the entry's "
    "(--name for a single stage); --store says where the store is",
    "resume_from_checkpoint": "a killed run goes on by itself: run the same command again",
    "lr_scheduler_type": "the learning rate rises over the share `warmup`, stays, and falls over "
    "the share `decay` to `final_lr` of its peak",
    "lr_scheduler": "the learning rate rises over the share `warmup`, stays, and falls over "
    "the share `decay` to `final_lr` of its peak",
    "warmup_steps": "`warmup` is a share of the iterations, such as 0.03",
    "max_steps": "the length of a stage is `epochs`, `iterations` or `tokens`",
    "save_steps": "`checkpoints` is how many are written in the course of the stage",
    "logging_steps": "every update is written to the run's metrics",
    "bf16": _FORMATS,
    "fp16": _FORMATS,
    "packing": "rows are always packed, and never see each other",
    "template": "the chat template is in the tokenizer that the model carries",
    "load_in_4bit": "a base in 4 bits is `base_bits: 4`, beside `adapter: lora`",
    "report_to": "nothing is sent anywhere; `rung report` writes the figures to a page",
}


_ROLES = ("model", "reward", "dataset", "feedback", "corpus", "corpora")  # only as inputs


@dataclass(frozen=True)
class Renamed:
    """values: with our keys. paths: what was written -> the path of our key. notes: for the user,
    one for each that was renamed."""

    values: dict[str, Any]
    paths: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]


def rename_keys(
    values: Mapping[str, Any],
    cls: type[Config],
    *,
    roles: Collection[str],
    where: Callable[[str], str],
) -> Renamed:
    """`values` with aliases replaced by the keys of `cls` or its roles.

    ConfigError where an alias and its key are both given, and for a word of other trainers that
    no key of this stage stands for.
    """
    own = {*cls.model_fields, *roles}
    foreign = [key for key in values if key not in own and may_be_alias(key)]
    renamed = {key: value for key, value in values.items() if key not in foreign}
    paths: dict[str, tuple[str, ...]] = {}
    for key in foreign:
        path = next((p for p in _candidates(key) if _has(cls, roles, p)), None)
        if path is None:
            raise ConfigError(f"{where(key)}: {_why_not(key, cls)}")
        name = ".".join(path)
        other = next((alias for alias, p in paths.items() if p == path), None)
        if other is None and _get(renamed, path) is not None:
            other = name
        if other is not None:
            raise ConfigError(f"{where(key)}: {key} and {other} both set {name}; keep one")
        value = [values[key]] if name == "files" and isinstance(values[key], str) else values[key]
        renamed = _put(renamed, path, value)
        paths[key] = path
    notes = [f"{where(key)}: {key} is taken as {'.'.join(path)}" for key, path in paths.items()]
    if ("lr",) in paths.values() and _uses_muon(cls, renamed):
        notes.append("lr is AdamW's; Muon, which trains the hidden matrices here, has matrix_lr")
    return Renamed(renamed, paths, tuple(notes))


def _uses_muon(cls: type[Config], values: Mapping[str, Any]) -> bool:
    field = cls.model_fields.get("optimizer")
    return field is not None and values.get("optimizer", field.get_default()) == "muon"


def may_be_alias(key: str) -> bool:
    return key in ALIASES or key in EXPLAINED


def _candidates(key: str) -> list[tuple[str, ...]]:
    return [tuple(path.split(".")) for path in ALIASES.get(key, ())]


def _has(cls: type[Config], roles: Collection[str], path: tuple[str, ...]) -> bool:
    first, *rest = path
    if not rest:
        return first in (roles if first in _ROLES else cls.model_fields)
    inner = cls.model_fields[first].annotation if first in cls.model_fields else None
    return isinstance(inner, type) and issubclass(inner, Config) and _has(inner, (), tuple(rest))


def _why_not(key: str, cls: type[Config]) -> str:
    said = EXPLAINED.get(key)
    if isinstance(said, tuple):
        said = said[1 if "rankings_per_update" in cls.model_fields else 0]
    if said is None:
        said = f"it stands for {' or '.join(ALIASES[key])}, which this stage does not have"
    return f"unknown key {key!r}: {said}"


def _get(values: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    found: Any = values
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _put(values: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy of `values` with `value` at `path`."""
    first, *rest = path
    inner = values.get(first)
    below = _put(inner if isinstance(inner, Mapping) else {}, tuple(rest), value) if rest else value
    return {**values, first: below}
