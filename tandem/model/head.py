"""The output head whose rows have length one.

Shapes: T tokens (any leading dimensions), E hidden, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NormHead(nn.Linear):
    """Logits are products with the weight's rows scaled to length one (Baichuan 2, 2023).

    The lengths are divided out of the logits, so the weight stays as it was loaded. Training computes them each step;
    otherwise they are computed once.
    """

    def __init__(self, hidden: int, vocabulary: int) -> None:
        super().__init__(hidden, vocabulary, bias=False)
        self._lengths: Tensor | None = None

    def train(self, mode: bool = True) -> NormHead:
        """Switch between training and inference; the lengths may have moved meanwhile."""
        self._lengths = None
        return super().train(mode)

    def forward(self, hidden: Tensor) -> Tensor:
        """[T, E] -> [T, V]."""
        return (F.linear(hidden, self.weight).float() / self._row_lengths()).to(hidden.dtype)

    def _row_lengths(self) -> Tensor:
        """Lengths of the weight's rows, fp32 [V]; a row of zeros counts as 1e-12 long, as in torch's `normalize`."""
        if self._lengths is not None:
            return self._lengths
        lengths: Tensor = torch.linalg.vector_norm(self.weight, dim=1, dtype=torch.float32).clamp(min=1e-12)
        if not self.training:
            self._lengths = lengths.detach()
        return lengths
