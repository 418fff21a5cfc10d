"""The head with rows of length one: its lengths follow the weight wherever it is moved."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tandem.model.head import NormHead


def exact(head: NormHead, hidden: Tensor) -> Tensor:
    return F.linear(hidden, F.normalize(head.weight, dim=1))


@pytest.fixture
def head() -> NormHead:
    torch.manual_seed(0)
    return NormHead(8, 20).eval()


@pytest.fixture
def hidden() -> Tensor:
    return torch.randn(3, 8)


def serve(head: NormHead, hidden: Tensor) -> Tensor:
    with torch.inference_mode():
        return head(hidden)


def test_logits_are_products_with_unit_rows(head: NormHead, hidden: Tensor) -> None:
    for _ in range(2):
        torch.testing.assert_close(serve(head, hidden), exact(head, hidden))


def test_other_weights_have_other_lengths(head: NormHead, hidden: Tensor) -> None:
    serve(head, hidden)
    head.load_state_dict({"weight": 3 * torch.randn(20, 8)})
    torch.testing.assert_close(serve(head, hidden), exact(head, hidden))
    head.double()
    torch.testing.assert_close(serve(head, hidden.double()), exact(head, hidden.double()), atol=1e-6, rtol=1e-6)


def test_training_between_two_servings(head: NormHead, hidden: Tensor) -> None:
    serve(head, hidden)
    head.train()
    head(hidden).sum().backward()
    with torch.no_grad():
        head.weight.add_(torch.randn(20, 8))
    torch.testing.assert_close(serve(head.eval(), hidden), exact(head, hidden))


def test_gradients_count_the_lengths_in_every_mode(head: NormHead, hidden: Tensor) -> None:
    serve(head, hidden)
    (expected,) = torch.autograd.grad(exact(head, hidden).pow(2).sum(), head.weight)
    for mode in (True, False, False):
        (found,) = torch.autograd.grad(head.train(mode)(hidden).pow(2).sum(), head.weight)
        torch.testing.assert_close(found, expected)


def test_a_row_of_zeros_is_no_division_by_zero(head: NormHead, hidden: Tensor) -> None:
    with torch.no_grad():
        head.weight[0] = 0
    assert (serve(head, hidden)[:, 0] == 0).all()
