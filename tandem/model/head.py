"""The output head whose rows have length one.

Shapes: T tokens (any leading dimensions), E hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NormHead(nn.Linear):
    """Logits are products with the weight's rows scaled to length one (Baichuan 2, 2023).

    The lengths are divided out of the logits, so the weight stays as it was loaded. They are measured at each step, but
    kept from one to the next while serving, in inference mode, where the weight does not move.
    """

    def __init__(self, hidden: int, vocabulary: int) -> None:
        super().__init__(hidden, vocabulary, bias=False)
        self._lengths: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        """[T, E] -> [T, V]."""
        lengths = self._kept() if torch.is_inference_mode_enabled() and not self.training else self.lengths()
        return (F.linear(hidden, self.weight) / lengths).to(hidden.dtype)

    def train(self, mode: bool = True) -> NormHead:
        """Switch between training and inference; the weight may have moved meanwhile."""
        self._lengths = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NormHead:
        self._lengths = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._lengths = None
        super()._load_from_state_dict(*args, **kwargs)

    def _kept(self) -> Tensor:
        if self._lengths is None:
            self._lengths = self.lengths()
        return self._lengths

    def lengths(self) -> Tensor:
        """Lengths of the weight's rows, at least fp32 [V]; one of zeros counts as 1e-12 long, as for `normalize`."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        lengths: Tensor = torch.linalg.vector_norm(self.weight, dim=1, dtype=wide)
        return lengths.clamp(min=1e-12)
