"""One layer of the decoder.

Parameters are unfused and `[out, in]`, whatever a checkpoint calls or fuses; serving packs them in a step of its own.

Shapes: T tokens (any leading dimensions), E hidden.
"""

from __future__ import annotations

from torch import Tensor, nn

from tandem.catalogue.config import GQA, ModelConfig, SwiGLU
from tandem.model.attention import Attention, LatentAttention
from tandem.model.context import AttentionContext
from tandem.model.experts import Mixture
from tandem.model.feed_forward import FeedForward
from tandem.model.norm import RMSNorm
from tandem.model.positions import Placement


class Block(nn.Module):
    """Attention and feed-forward, each behind its norm and added to what came in."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps, weight_wide=config.norm_weight_wide)
        self.attention = _attention(config, layer)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.norm_eps, weight_wide=config.norm_weight_wide)
        self.feed_forward = _feed_forward(config, layer)

    def forward(self, x: Tensor, place: Placement, context: AttentionContext) -> Tensor:
        """[T, E] -> [T, E]."""
        x = x + self.attention(self.attention_norm(x), place, context)
        return x + self.feed_forward(self.feed_forward_norm(x))  # type: ignore[no-any-return]


def _attention(config: ModelConfig, layer: int) -> Attention | LatentAttention:
    shape = config.attention
    return Attention(config, shape, layer) if isinstance(shape, GQA) else LatentAttention(config, shape, layer)


def _feed_forward(config: ModelConfig, layer: int) -> FeedForward | Mixture:
    part = config.feed_forward_of(layer)
    hidden = config.hidden_size
    return FeedForward(hidden, part.size) if isinstance(part, SwiGLU) else Mixture(hidden, part)
