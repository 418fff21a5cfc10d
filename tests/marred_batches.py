"""Batches that harm training, and a model that they harm; for processes of tests, too."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch

from tandem.catalogue.config import GQA, ModelConfig, SwiGLU
from tandem.catalogue.position import Rope
from tandem.model.decoder import Decoder
from tandem.training.data.batch import Batch
from tandem.training.data.batches import TokenBatches

POISON = 63
"""A token whose embedding is infinite: what holds it has no loss that is a number."""
LEARNABLE = TokenBatches(np.arange(400) * 7 % POISON, 16, 0)


class Marred:
    """Learnable samples, but for some."""

    def __init__(self, poisoned: Collection[int] = (), wild: Collection[int] = ()) -> None:
        self._poisoned = poisoned
        self._wild = wild

    def at(self, position: int, count: int) -> Batch:
        batch = LEARNABLE.at(position, count)
        rows = [torch.cat([batch.tokens[row], batch.targets[row, -1:]]) for row in range(count)]
        for row, place in enumerate(range(position, position + count)):
            if place in self._poisoned:
                rows[row] = torch.full_like(rows[row], POISON)
            if place in self._wild:
                rows[row] = torch.from_numpy(np.random.default_rng(place).integers(0, POISON, 17))
        tokens = torch.stack(rows)
        return Batch(tokens=tokens[:, :-1], targets=tokens[:, 1:])


class Without:
    """Learnable samples without those from `begin` to `end - 1`."""

    def __init__(self, begin: int, end: int) -> None:
        self._begin, self._end = begin, end

    def at(self, position: int, count: int) -> Batch:
        return LEARNABLE.at(position if position < self._begin else position + self._end - self._begin, count)


def decoder() -> Decoder:
    """One layer, one poisonous token."""
    model = Decoder(ModelConfig(
        family="llama", vocab_size=64, hidden_size=16, layers=1, attention=GQA(heads=2, kv_heads=1, head_dim=8),
        position=Rope(theta=10000.0, dims=8), feed_forward=SwiGLU(size=24), norm_eps=1e-5,
        tied_embeddings=False, max_position=64,
    ))  # fmt: skip
    model.initialise(0, std=0.2)
    with torch.no_grad():
        model.embedding.weight[POISON] = torch.inf
    return model
