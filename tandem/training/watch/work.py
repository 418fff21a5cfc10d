"""What a batch is made of, as speed is counted from it: positions, real tokens, targets that are learnt, pairs.

Shapes: B sequences, T tokens in each.
"""

from __future__ import annotations

from dataclasses import dataclass

from tandem.catalogue.config import ModelConfig
from tandem.catalogue.operations import attended_pairs
from tandem.training.data.batch import Batch
from tandem.training.data.sequences import real_lengths


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
