"""Log-probabilities of given text: what the model makes of tokens it did not choose.

T tokens, W width, K likeliest tokens
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rung.engine.choose import token_logps
from rung.engine.sampling import TokenLogps
from rung.model.forward import head_logits
from rung.model.types import PreTrainedModel

ROWS = 256  # rows of logits at once


def score(
    model: PreTrainedModel, hidden: Tensor, after: np.ndarray, *, num_top: int
) -> list[TokenLogps]:
    """Log-probabilities of the tokens `after` [T] that follow hidden states [T, W]."""
    targets = torch.from_numpy(after.astype(np.int64)).to(hidden.device)
    parts = []
    for at in range(0, len(targets), ROWS):
        rows = slice(at, at + ROWS)
        found = token_logps(head_logits(model, hidden[rows]), targets[rows], num_top=num_top)
        parts.append(TokenLogps(*found))
    return parts


def whole_prompt(parts: Sequence[TokenLogps], *, num_top: int) -> TokenLogps:
    """Of all tokens of a prompt: the first has no log-probability, the parts have the others."""
    return TokenLogps(
        np.concatenate([np.full(1, np.nan, np.float32), *(part.chosen for part in parts)]),
        np.concatenate([np.zeros((1, num_top), np.int32), *(part.top_ids for part in parts)]),
        np.concatenate([np.full((1, num_top), np.nan, np.float32), *(part.top for part in parts)]),
    )
