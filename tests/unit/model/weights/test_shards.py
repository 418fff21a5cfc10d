"""Shards as they are written: sizes, names and index, read back by the format's own library."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tandem.model.families.family import Rows
from tandem.model.weights.shards import Outgoing, outgoing, taken, write_shards

PARAMETERS = {
    "q": torch.randn(4, 3).bfloat16(),
    "k": torch.randn(2, 3).bfloat16(),
    "bias": torch.randn(5),
    "experts": torch.randn(2, 4, 3).bfloat16(),
    "turned": torch.randn(3, 4).t(),
}
LAYOUT = {
    "qk": (Rows("q"), Rows("k")),
    "bias": (Rows("bias"),),
    "experts.0": (Rows("experts", 0),),
    "experts.1": (Rows("experts", 1),),
    "turned": (Rows("turned"),),
}
EXPECTED = {
    "qk": torch.cat((PARAMETERS["q"], PARAMETERS["k"])),
    "bias": PARAMETERS["bias"],
    "experts.0": PARAMETERS["experts"][0],
    "experts.1": PARAMETERS["experts"][1],
    "turned": PARAMETERS["turned"],
}


def tensors() -> list[Outgoing]:
    return outgoing(LAYOUT, PARAMETERS, partial(taken, PARAMETERS))


def check(found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == EXPECTED.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in EXPECTED.items())


def test_a_small_model_is_one_file(tmp_path: Path) -> None:
    write_shards(tmp_path, tensors(), 10**9)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    check(load_file(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(("most", "count"), [(1, 5), (60, 3), (127, 2)])
def test_a_large_model_is_sharded_with_an_index(most: int, count: int, tmp_path: Path) -> None:
    write_shards(tmp_path, tensors(), most)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    names = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == names
    shards = {name: load_file(tmp_path / name) for name in names}
    check({name: tensor for shard in shards.values() for name, tensor in shard.items()})
    assert index["weight_map"] == {name: file for file, shard in shards.items() for name in shard}
    assert index["metadata"]["total_size"] == sum(tensor.numel() * tensor.itemsize for tensor in EXPECTED.values())
    sizes = {name: sum(t.numel() * t.itemsize for t in shard.values()) for name, shard in shards.items()}
    assert all(size <= most or len(shards[name]) == 1 for name, size in sizes.items())
