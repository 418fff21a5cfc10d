"""Slots, gathers, and the bytes that travel."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.kv.cache import CacheLayout, KVCache, compatibility_digest

CPU = torch.device("cpu")


def layout(**changes: int | str) -> CacheLayout:
    sizes = {"layers": 2, "planes": 2, "kv_heads": 3, "head_dim": 4, "block_size": 4}
    fields: dict[str, int | str] = {**sizes, "dtype": "float32"}
    return CacheLayout(**(fields | changes))  # type: ignore[arg-type]


@given(
    length=st.integers(1, 20),
    data=st.data(),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    planes=st.integers(1, 2),
)
@settings(max_examples=40, deadline=None)
def test_tokens_survive_the_journey(length: int, data: st.DataObject, dtype: str, planes: int) -> None:
    of = layout(dtype=dtype, planes=planes)
    need = -(-length // of.block_size)
    there, here = (data.draw(st.permutations(range(8)))[:need] for _ in range(2))
    sender, receiver = KVCache(of, 8, CPU), KVCache(of, 8, CPU)
    written = torch.randn(of.layers, planes, length, of.kv_heads, of.head_dim).to(of.torch_dtype)
    for layer in range(of.layers):
        sender.write(layer, sender.slots(there, 0, length), *written[layer])
    sent = sender.export_tokens(there, length)
    assert sent.numel() == length * of.bytes_per_token
    receiver.import_tokens(here, length, sent)
    for layer in range(of.layers):
        read = receiver.read(layer, torch.tensor(here), length)
        assert len(read) == planes
        assert all(map(torch.equal, read, written[layer]))


def test_slots_follow_the_block_table() -> None:
    cache = KVCache(layout(), 8, CPU)
    assert cache.slots([5, 2], 2, 7).tolist() == [22, 23, 8, 9, 10]


def test_digest_changes_with_everything_that_matters() -> None:
    base = compatibility_digest(layout(), "model")
    others = [layout(layers=3), layout(dtype="bfloat16"), layout(block_size=8), layout(kv_heads=1), layout(head_dim=2)]
    others.append(layout(planes=1))
    assert len({base, compatibility_digest(layout(), "other"), *map(compatibility_digest, others)}) == 8
