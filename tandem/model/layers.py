"""The parts of a decoder block: norm, rotary positions, attention, feed-forward.

Parameters are unfused and `[out, in]`, whatever a checkpoint calls or fuses; serving packs them in a step of its own.

Shapes: T tokens (any leading dimensions), E hidden, H query heads, K key/value heads, D head dimension, F inner.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tandem.catalogue.config import ModelConfig, Rope
from tandem.model.context import AttentionContext

Rotation = tuple[Tensor, Tensor]


class RMSNorm(nn.Module):
    """Root-mean-square norm, in fp32, cast back before the weight is applied (Zhang and Sennrich, 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[T, E] -> [T, E]."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rotation(rope: Rope, head_dim: int, positions: Tensor, dtype: torch.dtype) -> Rotation:
    """Cosines and sines for every token, each [T, 1, D/2], computed in fp32 (Su et al., 2021)."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions[..., None].float() * rope.theta**-exponents
    return angles.cos().unsqueeze(-2).to(dtype), angles.sin().unsqueeze(-2).to(dtype)


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Turn the pairs (x[i], x[i + D/2]) of [T, H, D] by their token's angles."""
    cos, sin = by
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    """Grouped-query attention; what the queries may see is the context's business."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        shape = config.attention
        self.layer = layer
        self.head_dim = shape.head_dim
        self.q = nn.Linear(config.hidden_size, shape.heads * shape.head_dim, bias=False)
        self.k = nn.Linear(config.hidden_size, shape.kv_heads * shape.head_dim, bias=False)
        self.v = nn.Linear(config.hidden_size, shape.kv_heads * shape.head_dim, bias=False)
        self.o = nn.Linear(shape.heads * shape.head_dim, config.hidden_size, bias=False)

    def forward(self, x: Tensor, by: Rotation, context: AttentionContext) -> Tensor:
        """[T, E] -> [T, E]."""
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q, self.k, self.v))
        out = context.attend(self.layer, rotate(q, by), rotate(k, by), v)
        return self.o(out.flatten(-2))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        inner = config.feed_forward.size
        self.gate = nn.Linear(config.hidden_size, inner, bias=False)
        self.up = nn.Linear(config.hidden_size, inner, bias=False)
        self.down = nn.Linear(inner, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[T, E] -> [T, E]."""
        return self.down(F.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One layer: attention and feed-forward, each behind its norm and added to what came in."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, by: Rotation, context: AttentionContext) -> Tensor:
        """[T, E] -> [T, E]."""
        x = x + self.attention(self.attention_norm(x), by, context)
        return x + self.feed_forward(self.feed_forward_norm(x))  # type: ignore[no-any-return]
