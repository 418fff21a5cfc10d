from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tandem.catalogue.models import MODELS
from tandem.catalogue.shapes import parameter_shapes
from tandem.catalogue.shrink import shrink
from tandem.model.context import CausalContext
from tandem.model.decoder import Decoder
from tandem.model.random_weights import _draw, random_decoder

ONE_PER_FAMILY = [
    "llama3.2-1b", "qwen-7b", "qwen2-0.5b", "glm3-6b", "baichuan2-13b", "mistral-7b", "mixtral-8x7b", "deepseek-v3",
]  # fmt: skip


def made(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Decoder:
    return random_decoder(shrink(MODELS[name].config), dtype, seed)


@torch.no_grad()
def logits(decoder: Decoder, tokens: list[int]) -> torch.Tensor:
    batch = torch.tensor([tokens])
    return decoder(batch, CausalContext(1, len(tokens), batch.device))[0]


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_everything_is_random(name: str) -> None:
    decoder = made(name)
    shapes = {parameter: tuple(tensor.shape) for parameter, tensor in decoder.named_parameters()}
    assert shapes == parameter_shapes(decoder.config)
    for parameter, tensor in decoder.named_parameters():
        assert tensor.std() > 0.02, parameter
        assert 0.7 < tensor.mean() < 1.3 if parameter.endswith("norm.weight") else tensor.mean().abs() < 0.3, parameter


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_logits_are_of_order_one_to_ten_and_greedy_text_varies(name: str) -> None:
    decoder, tokens = made(name), [5, 17, 300, 9, 77]
    for _ in range(24):
        tokens.append(int(logits(decoder, tokens)[-1].argmax()))
    last = logits(decoder, tokens)[-1]
    assert 0.7 < last.std() < 4
    assert 2 < last.max() < 15
    assert len(set(tokens[5:])) >= 8


def test_same_seed_same_parameters_and_dtypes_differ_by_rounding() -> None:
    wide, again, other = made("qwen2-0.5b"), made("qwen2-0.5b"), made("qwen2-0.5b", seed=1)
    narrow = made("qwen2-0.5b", torch.bfloat16)
    for name, tensor in wide.named_parameters():
        assert torch.equal(tensor, again.get_parameter(name))
        assert not torch.equal(tensor, other.get_parameter(name))
        assert torch.equal(tensor.bfloat16(), narrow.get_parameter(name))


def test_the_correction_of_the_router_stays_wide() -> None:
    dtypes = {name: tensor.dtype for name, tensor in made("deepseek-v3", torch.bfloat16).named_parameters()}
    wide = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert wide == {"layers.2.feed_forward.router.bias", "layers.3.feed_forward.router.bias"}


class Storages(TorchDispatchMode):
    """Counts the pieces of memory that operations make while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[torch.UntypedStorage] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if result.untyped_storage().data_ptr() not in {one.data_ptr() for one in self.held}:
            self.held.append(result.untyped_storage())
        return result


@pytest.mark.parametrize("name", ["layers.0.feed_forward.experts.gate", "norm.weight"])
def test_a_parameter_is_drawn_in_memory_of_its_own_size(name: str) -> None:
    with Storages() as storages:
        drawn = _draw(name, (4, 5, 6), shrink(MODELS["mixtral-8x7b"].config), torch.Generator())
    assert [one.data_ptr() for one in storages.held] == [drawn.data_ptr()]
