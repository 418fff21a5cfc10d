"""Root-mean-square norm.

Shapes: T tokens (any leading dimensions), E hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tandem.kernels.norm import rms_norm


class RMSNorm(nn.Module):
    """Scale to a root mean square of one, in fp32, and weigh (Zhang and Sennrich, 2019).

    Args:
        size: E.
        eps: Added to the mean square.
        weight_wide: Weigh in fp32 and then cast back, instead of casting first.
    """

    def __init__(self, size: int, eps: float, *, weight_wide: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps
        self.weight_wide = weight_wide

    def forward(self, x: Tensor) -> Tensor:
        """[T, E] -> [T, E]."""
        if x.dtype == self.weight.dtype == torch.float32:
            return rms_norm(x, self.weight, self.eps)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (wide * self.weight).to(x.dtype) if self.weight_wide else self.weight * wide.to(x.dtype)
