"""What a batch is made of, as speed is counted from it: positions, real tokens, targets that are learnt, pairs.

Shapes: B sequences, T tokens in each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tandem.catalogue.config import ModelConfig
from tandem.catalogue.operations import attended_pairs
from tandem.training.data.batch import IGNORED, Batch


@dataclass(frozen=True)
class Work:
    """What one step, or one rank's part of it, computes."""

    positions: int
    """B · T, padding included."""
    real: int
    """Tokens of the sequences themselves, without padding."""
    learnt: int
    """Targets that count for the loss."""
    pairs: int
    """Of a real token and one that it sees, over all layers; see `catalogue/operations.py`."""


def work_of(batch: Batch, config: ModelConfig) -> Work:
    """What a batch asks of a model."""
    lengths = real_lengths(batch).tolist()
    return Work(batch.tokens.numel(), sum(lengths), batch.valid(), attended_pairs(config, lengths))


def real_lengths(batch: Batch) -> Tensor:
    """Length of every sequence of the batch, int64, in order; 0 where nothing of it is learnt.

    A sequence reaches to the token behind the last that predicts something: nothing is learnt of what follows, which is
    padding, or a question that has no answer. So no token id and no segment number need be set aside for padding.
    """
    valid = batch.targets != IGNORED
    rows, length = valid.shape
    begins = torch.zeros_like(valid)
    begins[:, 0] = True
    if batch.segments is not None:
        begins[:, 1:] = batch.segments[:, 1:] != batch.segments[:, :-1]
    sequence = begins.flatten().cumsum(0) - 1
    first = begins.flatten().nonzero().squeeze(1)
    behind = torch.cat((first[1:], first.new_tensor([rows * length])))
    place = torch.arange(rows * length, device=valid.device)
    last = torch.full_like(first, -1).scatter_reduce(0, sequence, place.where(valid.flatten(), -1), "amax")
    return torch.where(last < 0, 0, torch.minimum(last + 2, behind) - first)
