"""The cache's memory: where every number lies, and that a block is one run of bytes over all layers."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.catalogue.arithmetic import kv_bytes_per_token
from tandem.catalogue.models import MODELS
from tandem.errors import UsageError
from tandem.kv.cache import CacheLayout, KVCache, compatibility_digest
from tandem.kv.shards import Shards

CPU = torch.device("cpu")
BLOCKS = 6


def layout(**changes) -> CacheLayout:
    sizes = {"layers": 2, "planes": 2, "kv_heads": 3, "head_dim": 5, "block_size": 4, "dtype": "float32"}
    return CacheLayout(**(sizes | changes))


@st.composite
def cases(draw: st.DrawFn) -> tuple[CacheLayout, list[int], int, int]:
    """A layout, a block table, and the tokens to write: from `start` to `stop`."""
    of = layout(
        layers=draw(st.integers(1, 3)),
        planes=draw(st.integers(1, 2)),
        kv_heads=draw(st.integers(1, 3)),
        head_dim=draw(st.integers(1, 5)),
        block_size=draw(st.integers(1, 5)),
        dtype=draw(st.sampled_from(["float32", "bfloat16", "float16"])),
    )
    table = draw(st.permutations(range(BLOCKS)))
    stop = draw(st.integers(1, of.block_size * BLOCKS))
    return of, table, draw(st.integers(0, stop - 1)), stop


@given(case=cases(), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_every_number_lies_where_the_layout_says(case: tuple[CacheLayout, list[int], int, int], seed: int) -> None:
    of, table, start, stop = case
    cache = KVCache(of, BLOCKS, CPU)
    numbers = cache.memory.data.view(of.torch_dtype)
    numbers.fill_(float("nan"))
    written = torch.randn(of.layers, of.planes, stop - start, of.kv_heads, of.head_dim).to(of.torch_dtype)
    for layer in range(of.layers):
        cache.write(layer, cache.slots(table, start, stop), *written[layer])
    expected = torch.full((len(numbers),), float("nan"), dtype=of.torch_dtype)
    for layer, plane, token, head in itertools.product(
        range(of.layers), range(of.planes), range(start, stop), range(of.kv_heads)
    ):
        place = table[token // of.block_size]
        for count, number in [(of.layers, layer), (of.planes, plane), (of.block_size, token % of.block_size)]:
            place = place * count + number
        place = (place * of.kv_heads + head) * of.head_dim
        expected[place : place + of.head_dim] = written[layer, plane, token - start, head]
    assert torch.equal(numbers.view(torch.uint8), expected.view(torch.uint8))
    for layer in range(of.layers):
        read = cache.read(layer, torch.tensor(table[: -(-stop // of.block_size)]), stop)
        assert [part.shape for part in read] == [(stop, of.kv_heads, of.head_dim)] * of.planes
        assert all(torch.equal(part[start:], of_plane) for part, of_plane in zip(read, written[layer], strict=True))


def test_a_block_is_one_run_of_bytes_and_moves_by_one_copy() -> None:
    of = layout(layers=3)
    here, there = KVCache(of, BLOCKS, CPU), KVCache(of, BLOCKS, CPU)
    there.memory.data.zero_()
    written = torch.randn(of.layers, of.planes, 8, of.kv_heads, of.head_dim)
    for layer in range(of.layers):
        here.write(layer, here.slots([5, 1], 0, 8), *written[layer])
    size = of.bytes_per_block
    assert here.memory.data.numel() == BLOCKS * size
    for theirs, ours in [(5, 0), (1, 4)]:
        there.memory.data[ours * size : (ours + 1) * size] = here.memory.data[theirs * size : (theirs + 1) * size]
    for layer in range(of.layers):
        assert all(map(torch.equal, there.read(layer, torch.tensor([0, 4]), 8), written[layer]))
    assert not there.blocks[[1, 2, 3, 5]].any()


def test_slots_follow_the_block_table() -> None:
    cache = KVCache(layout(), 8, CPU)
    # Four rows of [K, D] in a block's plane, four planes over its two layers.
    assert cache.slots([5, 2], 2, 7).tolist() == [82, 83, 32, 33, 34]


@pytest.mark.parametrize("name", ["llama3-8b", "deepseek-v3", "baichuan2-13b"])
def test_a_models_layout_takes_the_bytes_its_tokens_do(name: str) -> None:
    config = MODELS[name].config
    of = CacheLayout.of(config, "bfloat16", 16)
    assert of.bytes_per_token == kv_bytes_per_token(config, 2)
    assert of.bytes_per_block == 16 * of.bytes_per_token
    assert of.planes == (1 if name == "deepseek-v3" else 2)


@pytest.mark.parametrize(
    ("heads", "ranks", "expected"),
    [
        (6, 1, [range(6)]),
        (6, 3, [range(2), range(2, 4), range(4, 6)]),
        (2, 4, [range(1), range(1), range(1, 2), range(1, 2)]),
        (1, 3, [range(1)] * 3),
    ],
)
def test_ranks_hold_a_part_of_the_heads_or_one_head_several_times(
    heads: int, ranks: int, expected: list[range]
) -> None:
    whole = layout(kv_heads=heads)
    caches = [KVCache(whole.of_rank(rank, ranks), 2, CPU) for rank in range(ranks)]
    shards = Shards(whole, caches)
    assert [shards.heads(rank) for rank in range(ranks)] == expected
    for cache, held in zip(caches, expected, strict=True):
        assert cache.layout == layout(kv_heads=len(held))
        assert cache.blocks.shape == (2, 2, 2, 4, len(held), 5)


@pytest.mark.parametrize(("heads", "ranks"), [(6, 4), (4, 6), (3, 2)])
def test_heads_that_cannot_be_shared_out_are_refused(heads: int, ranks: int) -> None:
    with pytest.raises(UsageError, match=f"--tensor-parallel-size {ranks}"):
        layout(kv_heads=heads).of_rank(0, ranks)


def test_digest_changes_with_everything_that_matters() -> None:
    others = [layout(layers=3), layout(dtype="bfloat16"), layout(block_size=8), layout(kv_heads=1), layout(head_dim=2)]
    others.append(layout(planes=1))
    digests = {compatibility_digest(layout(), "model"), compatibility_digest(layout(), "other")}
    assert len(digests | {compatibility_digest(other, "model") for other in others}) == 8
    assert compatibility_digest(layout(), "a", "bc") != compatibility_digest(layout(), "ab", "c")
