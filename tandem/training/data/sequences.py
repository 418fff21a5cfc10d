"""Which sequence of a batch a token belongs to, and how long each really is.

A sequence reaches to the token behind the last that predicts something: nothing is learnt of what follows, which is
padding, or a question that has no answer. So no token id and no segment number need be set aside for padding.

Shapes: B rows, T tokens in each, S sequences, one or several in a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tandem.training.data.batch import Batch
from tandem.training.data.labels import IGNORED


def real_lengths(batch: Batch) -> Tensor:
    """Length of every sequence of the batch, int64 [S], in order; 0 where nothing of it is learnt."""
    return numbered(batch)[1]


def numbered(batch: Batch) -> tuple[Tensor, Tensor]:
    """The number of every token's sequence, int64 [B · T], S where it is padding; and the real lengths, int64 [S]."""
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
    lengths = torch.where(last < 0, 0, torch.minimum(last + 2, behind) - first)
    return sequence.where(place - first[sequence] < lengths[sequence], len(first)), lengths
