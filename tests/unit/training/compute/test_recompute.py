"""Recomputed activations: the same gradients bit for bit, and fewer tensors kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tandem.catalogue.models import MODELS
from tandem.catalogue.shrink import SmallShape, shrink
from tandem.model.context import CausalContext
from tandem.model.decoder import Decoder
from tandem.model.random_weights import random_decoder
from tandem.training.compute.loss import LossModel
from tandem.training.compute.precision import computing_in
from tandem.training.compute.recompute import apply_recompute
from tandem.training.settings.config import Recompute

FAMILIES = [
    "llama2-7b", "qwen-7b", "qwen2-0.5b", "glm3-6b", "baichuan2-13b", "mistral-7b", "mixtral-8x7b", "deepseek-v3",
]  # fmt: skip


def gradients(decoder: Decoder, dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], int]:
    """And how many numbers were kept for the backward pass."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    tokens = torch.randint(0, 101, (2, 24), generator=torch.Generator().manual_seed(0))
    with computing_in(decoder, dtype):
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = LossModel(decoder)(tokens, tokens.roll(-1, 1), CausalContext(2, 24, tokens.device))
        loss.backward()
    found = {name: parameter.grad for name, parameter in decoder.named_parameters() if parameter.grad is not None}
    return found, sum(kept.values())


def decoder_of(name: str, mode: Recompute) -> Decoder:
    decoder = random_decoder(shrink(MODELS[name].config, SmallShape(layers=2, vocab=101)), torch.float32, 0)
    apply_recompute(decoder.unfreeze().train(), mode)
    return decoder


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_the_same_bit_for_bit(name: str) -> None:
    expected, everything = gradients(decoder_of(name, "none"))
    for mode in ("selective", "full"):
        found, kept = gradients(decoder_of(name, mode))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[parameter], grad) for parameter, grad in expected.items())
        assert kept < everything


def test_no_matrix_product_is_computed_again_where_it_is_selective() -> None:
    products = {}
    for mode in ("none", "selective", "full"):
        decoder = decoder_of("llama2-7b", mode)
        with FlopCounterMode(display=False) as counter:
            gradients(decoder)
        products[mode] = counter.get_total_flops()
    assert products["none"] == products["selective"] < products["full"]


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_it_recomputes_in_the_precision_of_the_forward(mode: Recompute) -> None:
    expected, _ = gradients(decoder_of("llama2-7b", "none"), torch.bfloat16)
    found, _ = gradients(decoder_of("llama2-7b", mode), torch.bfloat16)
    assert all(grad.dtype == torch.float32 and torch.equal(found[name], grad) for name, grad in expected.items())
