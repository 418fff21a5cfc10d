"""Slots, gathers, and the bytes that travel."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.kv.cache import CacheLayout, KVCache, compatibility_digest

CPU = torch.device("cpu")


def layout(**changes: int | str) -> CacheLayout:
    fields: dict[str, int | str] = {"layers": 2, "kv_heads": 3, "head_dim": 4, "dtype": "float32", "block_size": 4}
    return CacheLayout(**(fields | changes))  # type: ignore[arg-type]


@given(length=st.integers(1, 20), data=st.data(), dtype=st.sampled_from(["float32", "bfloat16"]))
@settings(max_examples=40, deadline=None)
def test_tokens_survive_the_journey(length: int, data: st.DataObject, dtype: str) -> None:
    of = layout(dtype=dtype)
    need = -(-length // of.block_size)
    there, here = (data.draw(st.permutations(range(8)))[:need] for _ in range(2))
    sender, receiver = KVCache(of, 8, CPU), KVCache(of, 8, CPU)
    written = torch.randn(of.layers, 2, length, of.kv_heads, of.head_dim).to(of.torch_dtype)
    for layer in range(of.layers):
        sender.write(layer, sender.slots(there, 0, length), written[layer, 0], written[layer, 1])
    sent = sender.export_tokens(there, length)
    assert sent.numel() == length * of.bytes_per_token
    receiver.import_tokens(here, length, sent)
    for layer in range(of.layers):
        k, v = receiver.read(layer, torch.tensor(here), length)
        assert torch.equal(k, written[layer, 0])
        assert torch.equal(v, written[layer, 1])


def test_slots_follow_the_block_table() -> None:
    cache = KVCache(layout(), 8, CPU)
    assert cache.slots([5, 2], 2, 7).tolist() == [22, 23, 8, 9, 10]


def test_digest_changes_with_everything_that_matters() -> None:
    base = compatibility_digest(layout(), "model")
    others = [layout(layers=3), layout(dtype="bfloat16"), layout(block_size=8), layout(kv_heads=1), layout(head_dim=2)]
    assert len({base, compatibility_digest(layout(), "other"), *map(compatibility_digest, others)}) == 7
