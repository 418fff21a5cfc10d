"""The attention kernel against its formula in float64, for every way of cutting a sequence into chunks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tandem.kernels import attention
from tandem.kernels.attention import attend

EXACT = 1e-5


@dataclass(frozen=True)
class Shape:
    """Sizes of one problem; T new tokens of S."""

    batch: int
    new: int
    seen: int
    kv_heads: int
    group: int
    head_dim: int
    value_dim: int


shapes = st.builds(
    lambda new, before, **rest: Shape(new=new, seen=new + before, **rest),
    batch=st.integers(1, 3),
    new=st.integers(1, 9),
    before=st.integers(0, 9),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    head_dim=st.integers(1, 5),
    value_dim=st.integers(1, 5),
)
windows = st.none() | st.integers(1, 20)


def tensors(shape: Shape, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of the new tokens, keys and values of all, in float32."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(shape.batch, shape.new, shape.kv_heads * shape.group, shape.head_dim, generator=generator)
    k = torch.randn(shape.batch, shape.seen, shape.kv_heads, shape.head_dim, generator=generator)
    v = torch.randn(shape.batch, shape.seen, shape.kv_heads, shape.value_dim, generator=generator)
    return q, k, v


def formula(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    window: int | None = None,
    slopes: Tensor | None = None,
    same: Tensor | None = None,
) -> Tensor:
    """Token by token and head by head, [B, T, H, Dv] in float64."""
    out = torch.zeros(*q.shape[:3], v.shape[3], dtype=torch.float64)
    group = q.shape[2] // k.shape[2]
    before = k.shape[1] - q.shape[1]
    for b, t, h in torch.cartesian_prod(*(torch.arange(size) for size in q.shape[:3])).view(-1, 3).tolist():
        place = before + t
        first = 0 if window is None else max(place - window + 1, 0)
        visible = [j for j in range(first, place + 1) if same is None or same[b, t, j]]
        scores = [scale * float(q[b, t, h].double() @ k[b, j, h // group].double()) for j in visible]
        if slopes is not None:
            scores = [score - float(slopes[h]) * (place - j) for score, j in zip(scores, visible, strict=True)]
        weights = [math.exp(score - max(scores)) for score in scores]
        for weight, j in zip(weights, visible, strict=True):
            out[b, t, h] += weight / sum(weights) * v[b, j, h // group].double()
    return out


def assert_close(ours: Tensor, exact: Tensor) -> None:
    torch.testing.assert_close(ours.double(), exact, atol=EXACT, rtol=0)


@given(shape=shapes, window=windows, biased=st.booleans(), scale=st.floats(0.1, 2), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_it_is_the_formula(shape: Shape, window: int | None, biased: bool, scale: float, seed: int) -> None:
    q, k, v = tensors(shape, seed)
    slopes = torch.rand(q.shape[2]) if biased else None
    ours = attend(q, k, v, scale=scale, window=window, slopes=slopes)
    assert_close(ours, formula(q, k, v, scale, window, slopes))


@given(shape=shapes, window=windows, biased=st.booleans(), data=st.data(), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_sequences_in_one_row_do_not_see_each_other(
    shape: Shape, window: int | None, biased: bool, data: st.DataObject, seed: int
) -> None:
    q, k, v = tensors(shape, seed)
    slopes = torch.rand(q.shape[2]) if biased else None
    rows = [sorted(data.draw(st.lists(st.integers(0, 2), min_size=shape.seen, max_size=shape.seen))) for _ in q]
    owner = torch.tensor(rows)
    same = owner[:, shape.seen - shape.new :, None] == owner[:, None]
    ours = attend(q, k, v, scale=0.5, window=window, slopes=slopes, same=same)
    assert_close(ours, formula(q, k, v, 0.5, window, slopes, same))


@given(shape=shapes, window=windows, biased=st.booleans(), data=st.data(), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_chunks_make_no_difference(
    shape: Shape, window: int | None, biased: bool, data: st.DataObject, seed: int
) -> None:
    q, k, v = tensors(shape, seed)
    slopes = torch.rand(q.shape[2]) if biased else None
    cuts = sorted(data.draw(st.sets(st.integers(1, shape.new), max_size=3)) | {0, shape.new})
    before = shape.seen - shape.new
    parts = [
        attend(q[:, a:b], k[:, : before + b], v[:, : before + b], scale=0.5, window=window, slopes=slopes)
        for a, b in pairwise(cuts)
    ]
    whole = attend(q, k, v, scale=0.5, window=window, slopes=slopes)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=EXACT, rtol=0)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_bias_in_pieces_is_the_same_bias(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape(batch=2, new=11, seen=17, kv_heads=2, group=2, head_dim=4, value_dim=3)
    q, k, v = tensors(shape, 0)
    slopes = torch.rand(4)
    same = torch.rand(2, 11, 17) > 0.5
    same |= torch.eye(17, dtype=torch.bool)[6:]
    exact = formula(q, k, v, 0.5, 7, slopes, same)
    monkeypatch.setattr(attention, "MASK_NUMBERS", rows * 4 * 17)
    assert_close(attend(q, k, v, scale=0.5, window=7, slopes=slopes, same=same), exact)


def test_a_window_of_one_sees_only_itself() -> None:
    q, k, v = tensors(Shape(batch=1, new=5, seen=5, kv_heads=1, group=1, head_dim=2, value_dim=2), 0)
    torch.testing.assert_close(attend(q, k, v, scale=1.0, window=1), v)


def test_gradients_pass() -> None:
    """Training goes through the same kernel."""
    q, k, v = tensors(Shape(batch=2, new=6, seen=6, kv_heads=2, group=2, head_dim=4, value_dim=4), 0)
    for slopes, window in ((None, None), (torch.rand(4), None), (None, 3)):
        inputs = [x.double().requires_grad_() for x in (q, k, v)]

        def run(*x: Tensor, slopes: Tensor | None = slopes, window: int | None = window) -> Tensor:
            return attend(*x, scale=0.5, window=window, slopes=slopes)

        assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
