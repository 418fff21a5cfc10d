"""Attention segment by segment against the same under a mask, with gradients."""

from __future__ import annotations

import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tandem.kernels.attention import attend
from tandem.kernels.segments import attend_segments, fits_segments, on_npu

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


def as_documented(
    q: Tensor, k: Tensor, v: Tensor, head_num: int, input_layout: str, *, atten_mask: Tensor, scale: float,
    actual_seq_qlen: list[int], actual_seq_kvlen: list[int], sparse_mode: int, pre_tockens: int = 2**31 - 1,
    next_tockens: int = 2**31 - 1,
) -> tuple[Tensor]:  # fmt: skip
    """What torch_npu's page says of `npu_fusion_attention` in the layout TND: no NPU is at hand to ask."""
    assert (input_layout, head_num) == ("TND", q.shape[1])
    assert actual_seq_qlen == actual_seq_kvlen
    assert torch.equal(atten_mask, torch.ones(2048, 2048).triu(1).bool()), "the compressed causal mask"
    assert actual_seq_qlen[-1] == len(q) == len(k)
    out = []
    for begin, end in pairwise([0, *actual_seq_qlen]):
        row, column = torch.arange(end - begin)[:, None], torch.arange(end - begin)
        hidden = column > row if sparse_mode == 3 else (column - row > next_tockens) | (row - column > pre_tockens)
        assert sparse_mode in (3, 4)
        keys, values = (one[begin:end].repeat_interleave(head_num // k.shape[1], dim=1) for one in (k, v))
        scores = torch.einsum("thd,shd->hts", q[begin:end], keys) * scale
        out.append(torch.einsum("hts,shd->thd", scores.masked_fill(hidden, -torch.inf).softmax(-1), values))
    return (torch.cat(out),)


@pytest.mark.parametrize("window", [None, 1, 4])
def test_an_npu_is_asked_for_the_same(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_npu", SimpleNamespace(npu_fusion_attention=as_documented))
    q, k, v = drawn(2, 16, 4, 6), drawn(2, 16, 2, 6), drawn(2, 16, 2, 6)
    expected = attend_segments(q, k, v, EDGES, scale=0.4, window=window).flatten(0, 1)
    flat = [one.flatten(0, 1) for one in (q, k, v)]
    torch.testing.assert_close(on_npu(flat, EDGES, 0.4, window), expected)
    later = on_npu([one[10:] for one in flat], EDGES[2:], 0.4, window)
    torch.testing.assert_close(later, expected[10:])
