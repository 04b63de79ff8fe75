"""The type of a model in signatures, without the seconds that importing the real one takes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel
else:
    # Nothing here makes one or asks whether something is one: transformers.PreTrainedModel would
    # load all of its training code (2.6 s) for each plan, help and test that imports a stage.
    from torch.nn import Module as PreTrainedModel

__all__ = ["PreTrainedModel"]
