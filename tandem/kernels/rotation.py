"""Rotary positions: pairs of dimensions turned by an angle, and gradients turned back by it.

Shapes: T tokens (any leading dimensions), H heads, D head dimension, P pairs, of which 2 P <= D dimensions are turned.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """Turn the first 2 P dimensions of each head of [T, H, D]; the others stay.

    Args:
        x: [T, H, D].
        cos: Of the angles, [T, 1, P].
        sin: As `cos`; neither gets a gradient.
        interleaved: Pairs are (x[2i], x[2i + 1]) and not (x[i], x[i + P]).
    """
    return _Rotate.apply(x, cos, sin, interleaved)  # type: ignore[no-any-return, no-untyped-call]


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return _turned(x, cos, sin, interleaved, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, sin, ctx.interleaved, -1), None, None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, sense: int) -> Tensor:
    pairs = cos.shape[-1]
    out = torch.empty_like(x)
    (first, second), (left, right) = (_sides(tensor, pairs, interleaved) for tensor in (x, out))
    torch.mul(first, cos, out=left).addcmul_(second, sin, value=-sense)
    torch.mul(second, cos, out=right).addcmul_(first, sin, value=sense)
    if 2 * pairs < x.shape[-1]:
        out[..., 2 * pairs :] = x[..., 2 * pairs :]
    return out


def _sides(x: Tensor, pairs: int, interleaved: bool) -> tuple[Tensor, Tensor]:
    """The first and the second of every pair, views [T, H, P]."""
    if interleaved:
        return x[..., 0 : 2 * pairs : 2], x[..., 1 : 2 * pairs : 2]
    return x[..., :pairs], x[..., pairs : 2 * pairs]
