"""Forward and backward by hand against autograd's own over the formulas, in the same precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tandem.kernels.norm import rms_norm
from tandem.kernels.rotation import rotate


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_the_norm_and_its_gradients_are_the_formulas() -> None:
    x, weight, grad = drawn(2, 7, 12).requires_grad_(), drawn(12).requires_grad_(), drawn(2, 7, 12) + 1
    expected = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.3) * weight
    found = rms_norm(x, weight, 0.3)
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found, (x, weight), grad), torch.autograd.grad(expected, (x, weight), grad), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_a_frozen_weight_gets_no_gradient() -> None:
    x, weight = drawn(3, 4).requires_grad_(), drawn(4)
    rms_norm(x, weight, 1e-5).sum().backward()
    assert x.grad is not None
    assert weight.grad is None


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("pairs", [4, 3])
def test_rotation_is_the_product_of_complex_numbers_and_its_gradient_turns_back(
    *, interleaved: bool, pairs: int
) -> None:
    x, angles, grad = drawn(2, 5, 3, 8).requires_grad_(), drawn(2, 5, 1, pairs), drawn(2, 5, 3, 8)
    turned = x[..., : 2 * pairs]
    first, second = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, dim=-1)
    product = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    sides = (product.real, product.imag)
    whole = torch.stack(sides, dim=-1).flatten(-2) if interleaved else torch.cat(sides, dim=-1)
    expected = torch.cat((whole, x[..., 2 * pairs :]), dim=-1)
    found = rotate(x, angles.cos(), angles.sin(), interleaved=interleaved)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, x, grad), torch.autograd.grad(expected, x, grad))
