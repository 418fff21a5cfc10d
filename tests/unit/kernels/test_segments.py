"""Attention segment by segment against the same under a mask, with gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tandem.kernels.attention import attend
from tandem.kernels.segments import attend_segments, fits_segments

EDGES = [0, 3, 10, 16, 17, 32]
"""Of two rows of 16."""


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_()


@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("slopes", [None, torch.tensor([0.5, 0.1, 0.03, 0.01])])
def test_segments_see_what_a_mask_would_let_them(window: int | None, slopes: Tensor | None) -> None:
    q, k, v = drawn(2, 16, 4, 6), drawn(2, 16, 2, 6), drawn(2, 16, 2, 5)
    number = torch.bucketize(torch.arange(32), torch.tensor(EDGES[1:]), right=True).view(2, 16)
    same = number[:, :, None] == number[:, None]
    expected = attend(q, k, v, scale=0.4, window=window, slopes=slopes, same=same)
    assert fits_segments(q, v, slopes)
    found = attend_segments(q, k, v, EDGES, scale=0.4, window=window, slopes=slopes)
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, (q, k, v), grad), torch.autograd.grad(expected, (q, k, v), grad), strict=True
    ):
        assert (one - other).norm() <= 1e-5 * other.norm()
