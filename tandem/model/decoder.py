"""The one decoder: what the trainer trains and what the engine serves.

Shapes: T tokens (any leading dimensions), E hidden, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tandem.catalogue.config import ModelConfig
from tandem.model.block import Block
from tandem.model.context import AttentionContext
from tandem.model.head import NormHead
from tandem.model.norm import RMSNorm
from tandem.model.positions import Positions
from tandem.parallel.rows import keep_own

RESIDUAL = ("attention.o.weight", "feed_forward.down.weight", "experts.down", "shared.down.weight")
"""Matrices that feed the residual stream."""


class Decoder(nn.Module):
    """A decoder-only transformer of any family.

    Parameters are left as `torch.nn` makes them; call `initialise` to train from scratch, or build on the meta device
    (`skeleton.bare`) and load a folder (`model/folder.py`). Their names and shapes are `catalogue/shapes.py`'s.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps, weight_wide=config.norm_weight_wide)
        self.head = _head(config)
        self._positions = Positions(config)

    def hidden(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Token ids [T] -> final hidden states [T, E], after the last norm."""
        x = self.embedding(tokens)
        place = self._positions.place(context, x.dtype, training=self.training)
        for block in self.layers:
            x = block(x, place, context)
        return self.norm(x)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Final hidden states [T, E] -> logits [T, V]."""
        return F.linear(hidden, self.embedding.weight) if self.head is None else self.head(hidden)

    def forward(self, tokens: Tensor, context: AttentionContext) -> Tensor:
        """Token ids [T] -> logits [T, V]."""
        return self.logits(self.hidden(tokens, context))

    def unfreeze(self) -> Decoder:
        """Let gradients move what a folder's load left frozen: everything but the routers' biases."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not name.endswith("router.bias"))
        return self

    @torch.no_grad()
    def initialise(self, seed: int, std: float = 0.02) -> None:
        """Draw all matrices from a normal distribution; those that feed the residual stream get less (GPT-2).

        Norms become one and biases zero. Where the parameters are sharded each rank draws all of them, one at a time,
        and keeps its own rows, so that the model does not depend on the number of ranks.
        """
        generator = torch.Generator().manual_seed(seed)
        residual = std / (2 * self.config.layers) ** 0.5
        for name, parameter in self.named_parameters():
            values = torch.empty(parameter.shape, dtype=parameter.dtype)
            if parameter.dim() > 1:
                values.normal_(0, residual if name.endswith(RESIDUAL) else std, generator=generator)
            else:
                values.fill_(0 if name.endswith(".bias") else 1)
            keep_own(parameter, values)


def _head(config: ModelConfig) -> nn.Linear | None:
    # A tied head has no parameter of its own, so it can neither be saved twice nor drift apart.
    if config.tied_embeddings:
        return None
    if config.normalised_head:
        return NormHead(config.hidden_size, config.vocab_size)
    return nn.Linear(config.hidden_size, config.vocab_size, bias=False)
