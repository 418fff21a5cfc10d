"""The two kinds of attention; what the queries may see is the context's business.

Shapes: T tokens (any leading dimensions), E hidden, H query heads, K key/value heads, D head dimension of queries and
keys, Dv of values, R numbers of a latent.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tandem.catalogue.config import GQA, MLA, ModelConfig
from tandem.catalogue.position import Rope, Yarn
from tandem.model.context import AttentionContext
from tandem.model.norm import RMSNorm
from tandem.model.positions import Placement

LATENT_NORM_EPS = 1e-6
"""DeepSeek's for the norms inside latent attention, whatever the model's other norms have."""


class Attention(nn.Module):
    """Grouped-query attention."""

    def __init__(self, config: ModelConfig, shape: GQA, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = shape.head_dim
        self.scale = shape.head_dim**-0.5
        self.window = shape.window.size if shape.window and layer in shape.window.layers else None
        query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q = nn.Linear(config.hidden_size, query, bias=shape.qkv_bias)
        self.k = nn.Linear(config.hidden_size, key, bias=shape.qkv_bias)
        self.v = nn.Linear(config.hidden_size, key, bias=shape.qkv_bias)
        self.o = nn.Linear(query, config.hidden_size, bias=False)

    def forward(self, x: Tensor, place: Placement, context: AttentionContext) -> Tensor:
        """[T, E] -> [T, E]."""
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q, self.k, self.v))
        out = context.attend(
            self.layer,
            place.rotate_query(q),
            place.rotate(k),
            v,
            scale=self.scale,
            window=self.window,
            slopes=place.slopes,
        )
        return self.o(out.flatten(-2))  # type: ignore[no-any-return]


class LatentAttention(nn.Module):
    """Multi-head latent attention (DeepSeek-V2, 2024).

    A token's latent is `kv_rank` normed numbers, from which every head's unrotated key part and value are made, and
    the rotated key part that all heads share. The score of a query with an expanded key equals that of the absorbed
    query with the latent itself, so cached tokens need not be expanded.
    """

    def __init__(self, config: ModelConfig, shape: MLA, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.shape = shape
        self._query_parts = [shape.nope_dim, shape.rope_dim]
        self._latent_parts = [shape.kv_rank, shape.rope_dim]
        self._up_parts = [shape.nope_dim, shape.value_dim]
        self.scale = (shape.nope_dim + shape.rope_dim) ** -0.5 * _softmax_factor(config)
        query = shape.heads * (shape.nope_dim + shape.rope_dim)
        if shape.q_rank is None:
            self.q = nn.Linear(config.hidden_size, query, bias=False)
        else:
            self.q_down = nn.Linear(config.hidden_size, shape.q_rank, bias=False)
            self.q_norm = RMSNorm(shape.q_rank, LATENT_NORM_EPS)
            self.q_up = nn.Linear(shape.q_rank, query, bias=False)
        self.kv_down = nn.Linear(config.hidden_size, shape.kv_rank + shape.rope_dim, bias=False)
        self.kv_norm = RMSNorm(shape.kv_rank, LATENT_NORM_EPS)
        self.kv_up = nn.Linear(shape.kv_rank, shape.heads * (shape.nope_dim + shape.value_dim), bias=False)
        self.o = nn.Linear(shape.heads * shape.value_dim, config.hidden_size, bias=False)

    def forward(self, x: Tensor, place: Placement, context: AttentionContext) -> Tensor:
        """[T, E] -> [T, E]."""
        nope, rope = torch.split(self._queries(x), self._query_parts, dim=-1)
        q = torch.cat((nope, place.rotate(rope)), dim=-1)
        compressed, key = torch.split(self.kv_down(x), self._latent_parts, dim=-1)
        latents = torch.cat((self.kv_norm(compressed), place.rotate(key.unsqueeze(-2)).squeeze(-2)), dim=-1)
        return self.o(context.attend_latent(self.layer, q, latents, self).flatten(-2))  # type: ignore[no-any-return]

    def expand(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [T, R] -> keys [T, H, D] and values [T, H, Dv]."""
        compressed, key = torch.split(latents, self._latent_parts, dim=-1)
        parts = self.kv_up(compressed).unflatten(-1, (self.shape.heads, -1))
        nope, values = torch.split(parts, self._up_parts, dim=-1)
        shared = key.unsqueeze(-2).expand(*nope.shape[:-1], -1)
        return torch.cat((nope, shared), dim=-1), values

    def absorb(self, q: Tensor) -> Tensor:
        """Queries [T, H, D] -> [T, H, R]."""
        nope, rope = torch.split(q, self._query_parts, dim=-1)
        keys, _ = self._up()
        return torch.cat((torch.einsum("...hn,hnr->...hr", nope, keys), rope), dim=-1)

    def values(self, weighted: Tensor) -> Tensor:
        """Weighted sums of latents [T, H, R] -> the same sums of values [T, H, Dv]."""
        _, values = self._up()
        return torch.einsum("...hr,hvr->...hv", weighted[..., : self.shape.kv_rank], values)

    def _queries(self, x: Tensor) -> Tensor:
        q = self.q(x) if self.shape.q_rank is None else self.q_up(self.q_norm(self.q_down(x)))
        return q.unflatten(-1, (self.shape.heads, -1))  # type: ignore[no-any-return]

    def _up(self) -> tuple[Tensor, Tensor]:
        """The projection's parts for keys [H, nope, kv_rank] and for values [H, Dv, kv_rank]."""
        parts = self.kv_up.weight.view(self.shape.heads, -1, self.shape.kv_rank)
        keys, values = torch.split(parts, self._up_parts, dim=1)
        return keys, values


def _softmax_factor(config: ModelConfig) -> float:
    scaling = config.position.scaling if isinstance(config.position, Rope) else None
    return scaling.softmax_factor if isinstance(scaling, Yarn) else 1.0
