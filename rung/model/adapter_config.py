"""What a stage says of its adapter, and whether that can run here."""

import importlib.util
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from rung.config import Config
from rung.errors import ResourceError
from rung.model.fourbit import require_four_bit


class AdapterConfig(Config):
    """What is trained beside a frozen base; every training stage but pretrain takes these.

    takes_dropout: False where an objective compares log-probabilities of the policy itself, of
    which nothing may be left out.
    """

    takes_adapter: ClassVar[bool] = True
    takes_dropout: ClassVar[bool] = True

    adapter: Literal["none", "lora", "rslora", "dora"] = Field(
        "none", description="none: train all weights; else train small matrices beside frozen ones"
    )
    lora_r: int = Field(16, ge=1, description="rank of the adapter's matrices")
    lora_alpha: float = Field(32.0, gt=0, description="scale: alpha / r, of rslora alpha / sqrt(r)")
    lora_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of the adapter's inputs left out"
    )
    lora_targets: tuple[str, ...] | None = Field(
        None, description="names of the linear layers to adapt; all but the output head"
    )
    base_bits: Literal[4] | None = Field(
        None, description="4 keeps the frozen base in NF4 (QLoRA); else bf16 where products are"
    )

    @model_validator(mode="after")
    def _adapter_makes_sense(self) -> Self:
        """An option that would do nothing is refused, not ignored."""
        if self.adapter != "none" and not self.takes_adapter:
            raise ValueError("this stage starts from random weights: there is no base to adapt")
        if self.lora_dropout and not self.takes_dropout:
            raise ValueError(
                "lora_dropout is for continue, sft, classify and reward; here the "
                "log-probabilities must be the policy's own: leave it out"
            )
        if self.adapter == "none":
            for name, field in AdapterConfig.model_fields.items():
                if getattr(self, name) != field.default:
                    raise ValueError(
                        f"{name} needs an adapter: set adapter to lora, rslora or dora"
                    )
        return self


def check_adapter(config: AdapterConfig, device: torch.device) -> None:
    """ResourceError, before anything is loaded, where what `config` asks for cannot run."""
    if config.adapter == "none":
        return
    require_peft(f"adapter: {config.adapter}")
    if config.base_bits == 4:
        require_four_bit(device)


def require_peft(what: str) -> None:
    if importlib.util.find_spec("peft") is None:
        raise ResourceError(
            f"{what} needs peft, which is not installed: pip install 'rung[adapters]'"
        )
