"""The chunked loss against torch's own over whole logits, for one model of every family and every kind of head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tandem.catalogue.models import MODELS
from tandem.catalogue.shrink import SmallShape, shrink
from tandem.model.context import CausalContext
from tandem.model.decoder import Decoder
from tandem.model.random_weights import random_decoder
from tandem.training.compute import loss as module
from tandem.training.compute.loss import LossModel, linear_cross_entropy
from tandem.training.data.labels import IGNORED

FAMILIES = [
    "llama3.2-1b", "yi-6b", "qwen-7b", "qwen2-0.5b", "qwen2.5-7b", "glm3-6b", "glm4-9b", "baichuan2-13b", "mistral-7b",
    "mixtral-8x7b", "deepseek-v3",
]  # fmt: skip


def decoder_of(name: str) -> Decoder:
    return random_decoder(shrink(MODELS[name].config, SmallShape(layers=2, vocab=101)), torch.float32, 0).unfreeze()


def batch() -> tuple[Tensor, Tensor, CausalContext]:
    tokens = torch.randint(0, 101, (2, 24), generator=torch.Generator().manual_seed(0))
    targets = tokens.roll(-1, 1)
    targets[0, :9] = targets[:, -1] = IGNORED
    return tokens, targets, CausalContext(2, 24, tokens.device)


def plain(decoder: Decoder, tokens: Tensor, targets: Tensor, context: CausalContext) -> Tensor:
    logits = decoder(tokens, context).float().flatten(0, 1)
    return F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum")


def gradients(decoder: Decoder) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in decoder.named_parameters() if parameter.grad is not None}
    decoder.zero_grad()
    return found


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[name] - grad).norm() / grad.norm().clamp(min=1e-3)) for name, grad in expected.items())


@pytest.fixture(autouse=True)
def few_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHED_LOGITS", 7 * 101)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_equals_the_loss_of_whole_logits(name: str) -> None:
    decoder = decoder_of(name)
    expected = plain(decoder, *batch())
    (expected / 3).backward()
    reference = gradients(decoder)
    found = LossModel(decoder)(*batch())
    (found / 3).backward()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert distance(gradients(decoder), reference) < 1e-5


def test_every_kind_of_head_is_among_the_families() -> None:
    heads = {type(decoder_of(name).head).__name__ for name in FAMILIES}
    assert heads == {"NoneType", "Linear", "NormHead"}


def test_float64_agrees_to_its_own_precision() -> None:
    draw = torch.Generator().manual_seed(0)
    hidden, matrix = (
        torch.randn(shape, dtype=torch.float64, generator=draw).requires_grad_() for shape in ((11, 6), (13, 6))
    )
    targets = torch.arange(11)
    expected = torch.autograd.grad(F.cross_entropy(hidden @ matrix.T, targets, reduction="sum"), (hidden, matrix))
    found = torch.autograd.grad(linear_cross_entropy(hidden, matrix, targets, 4), (hidden, matrix))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-14)


def test_a_frozen_head_gets_no_gradient_and_everything_below_does() -> None:
    decoder = decoder_of("llama2-7b")
    assert decoder.head is not None
    plain(decoder, *batch()).backward()
    reference = gradients(decoder)
    del reference["head.weight"]
    decoder.head.weight.requires_grad_(False)
    LossModel(decoder)(*batch()).backward()
    assert distance(gradients(decoder), reference) < 1e-5


class Adapted(nn.Linear):
    """A head with a forward of its own, as an adapter has."""

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden) + hidden.sum(-1, keepdim=True)


def test_a_head_that_does_more_than_multiply_is_called() -> None:
    decoder = decoder_of("llama2-7b")
    assert decoder.head is not None
    decoder.head.__class__ = Adapted
    plain(decoder, *batch()).backward()
    reference = gradients(decoder)
    LossModel(decoder)(*batch()).backward()
    assert distance(gradients(decoder), reference) < 1e-5


def test_bfloat16_is_summed_in_float32() -> None:
    decoder = decoder_of("llama2-7b").to(torch.bfloat16)
    with torch.no_grad():
        expected, found = plain(decoder, *batch()), LossModel(decoder)(*batch())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    LossModel(decoder)(*batch()).backward()
    assert all(grad.dtype == torch.bfloat16 for grad in gradients(decoder).values())


def test_nothing_to_learn_is_a_loss_of_zero_with_gradients_of_zero() -> None:
    decoder = decoder_of("llama2-7b")
    tokens, targets, context = batch()
    found = LossModel(decoder)(tokens, torch.full_like(targets, IGNORED), context)
    found.backward()
    assert found == 0
    zeros = gradients(decoder)
    assert zeros.keys() == dict(decoder.named_parameters()).keys()
    assert all(not grad.any() for grad in zeros.values())


def test_logits_of_all_tokens_never_exist() -> None:
    sizes: list[int] = []

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            sizes.extend(
                one.numel() for one in (out if isinstance(out, (tuple, list)) else [out]) if torch.is_tensor(one)
            )
            return out

    hidden, matrix = torch.randn(64, 4).requires_grad_(), torch.randn(1000, 4).requires_grad_()
    with Largest():
        linear_cross_entropy(hidden, matrix, torch.arange(64), 8).backward()
    assert max(sizes) == 8 * 1000
