"""Logits before a token is drawn: penalties, biases, and what a sample may not say.

B rows, V vocabulary
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rung.engine.request import Sample
from rung.errors import RungError


def reshape(logits: Tensor, samples: Sequence[Sample]) -> Tensor:
    """`logits` [B, V] as its samples want them; itself where none wants anything."""
    wanted = [
        (row, sample)
        for row, sample in enumerate(samples)
        if sample.request.sampling.reshapes or sample.constraint is not None
    ]
    if not wanted:
        return logits
    logits = logits.float().clone()
    for row, sample in wanted:
        _penalise(logits[row], sample)
        for token, bias in sample.request.sampling.logit_bias:
            logits[row, token] += bias
        if len(sample.ids) < sample.request.sampling.min_new_tokens:
            logits[row, list(sample.request.sampling.stop_ids)] = -torch.inf
        if sample.constraint is not None:
            try:
                logits[row].masked_fill_(_forbidden(sample, logits), -torch.inf)
            except RungError as error:  # the sample's own trouble, not its neighbours'
                sample.error = error
    return logits


def _penalise(logits: Tensor, sample: Sample) -> None:
    sampling = sample.request.sampling
    if sampling.repetition_penalty != 1:
        known = np.unique(np.concatenate([sample.request.prompt, sample.ids]).astype(np.int64))
        at = torch.from_numpy(known).to(logits.device)
        values, penalty = logits[at], sampling.repetition_penalty
        logits[at] = torch.where(values > 0, values / penalty, values * penalty)
    if (sampling.presence_penalty or sampling.frequency_penalty) and sample.ids:
        said, counts = np.unique(np.array(sample.ids, dtype=np.int64), return_counts=True)
        off = sampling.presence_penalty + sampling.frequency_penalty * counts
        logits[torch.from_numpy(said).to(logits.device)] -= torch.from_numpy(off).to(logits)


def _forbidden(sample: Sample, logits: Tensor) -> Tensor:
    """bool [V], 1 = the constraint does not allow it."""
    assert sample.constraint is not None
    allowed = sample.constraint.mask()
    forbidden = np.ones(logits.shape[-1], dtype=bool)  # a model may have more rows than tokens
    forbidden[: len(allowed)] = ~allowed[: len(forbidden)]
    return torch.from_numpy(forbidden).to(logits.device)
