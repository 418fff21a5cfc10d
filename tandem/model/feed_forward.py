"""Gated feed-forward.

Shapes: T tokens (any leading dimensions), E hidden, F inner.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, 2020)."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden, inner, bias=False)
        self.up = nn.Linear(hidden, inner, bias=False)
        self.down = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[T, E] -> [T, E]."""
        return self.down(F.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]
