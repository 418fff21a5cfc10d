"""The table of a safetensors file: the same as the format's own library reads, and no stranger's table is believed."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tandem.errors import ModelFolderError
from tandem.model.weights.dtypes import STORED_DTYPES, TORCH_DTYPES
from tandem.model.weights.safetensors_file import LENGTH_BYTES, head, read_table

ONE_LINE = r"is damaged or half-written \(.+\); copy it again$"


def sample() -> dict[str, torch.Tensor]:
    return {
        "wide": torch.arange(6, dtype=torch.float32).view(2, 3),
        "narrow": torch.arange(5).to(torch.bfloat16),
        "eight": torch.arange(4).to(torch.float8_e4m3fn),
        "empty": torch.zeros(0, 7),
        "scalar": torch.tensor(3.0),
    }


def file_of(table: bytes, data: bytes = b"") -> bytes:
    return len(table).to_bytes(LENGTH_BYTES, "little") + table + data


def file_with(entries: Any, data: bytes = bytes(8)) -> bytes:
    return file_of(json.dumps(entries).encode(), data)


def one(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@given(shapes=st.lists(st.lists(st.integers(0, 5), max_size=4), max_size=6), data=st.data())
@settings(max_examples=50, deadline=None)
def test_reads_what_the_library_writes(
    shapes: list[list[int]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    dtypes = st.sampled_from(list(TORCH_DTYPES.values()))
    tensors = {f"t{i}": torch.ones(shape).to(data.draw(dtypes)) for i, shape in enumerate(shapes)}
    path = tmp_path_factory.mktemp("file") / "x.safetensors"
    save_file(tensors, path)
    table = read_table(path)
    content = path.read_bytes()
    assert table.keys() == tensors.keys()
    for name, tensor in tensors.items():
        stored = table[name]
        assert (stored.path, stored.dtype, stored.shape) == (path, STORED_DTYPES[tensor.dtype], tuple(tensor.shape))
        raw = content[stored.offset : stored.offset + stored.size]
        assert raw == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    tensors = dict(sorted(sample().items(), key=lambda item: -item[1].itemsize))
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(head({name: (STORED_DTYPES[t.dtype], tuple(t.shape)) for name, t in tensors.items()}))
        for tensor in tensors.values():
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    again = load_file(path)
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype
        assert again[name].float().equal(tensor.float())
    with safe_open(path, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    assert all(stored.offset % TORCH_DTYPES[stored.dtype].itemsize == 0 for stored in read_table(path).values())


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "ends within its table"),
    "half a length": (b"\1\0", "ends within its table"),
    "table longer than the file": (file_of(b"{}")[:-1], "ends within its table"),
    "length of 2^63": ((2**63).to_bytes(8, "little") + b"{}", "ends within its table"),
    "no JSON": (file_of(b"{"), "no JSON"),
    "no text": (file_of(b"\xff\xfe"), "no JSON"),
    "deep JSON": (file_of(b"[" * 100_000), "no JSON"),
    "long number": (file_of(b'{"x": ' + b"9" * 10_000 + b"}"), "no JSON"),
    "a list": (file_with([]), "no JSON object"),
    "a name twice": (file_of(b'{"x": 1, "x": 2}'), "a name is there twice"),
    "entry is a number": (file_with({"x": 1}), "x has no shape"),
    "no shape": (file_with({"x": {"dtype": "F32", "data_offsets": [0, 8]}}), "x has no shape"),
    "no offsets": (file_with({"x": {"dtype": "F32", "shape": [2]}}), "x has no data_offsets"),
    "no dtype": (file_with({"x": {"shape": [2], "data_offsets": [0, 8]}}), "x has the unknown dtype None"),
    "unknown dtype": (file_with(one(dtype="F4")), "x has the unknown dtype F4"),
    "negative size": (file_with(one(shape=[-2])), "x has a shape that is no list of sizes"),
    "size is a fraction": (file_with(one(shape=[2.0])), "x has a shape that is no list of sizes"),
    "size is true": (file_with(one(shape=[True])), "x has a shape that is no list of sizes"),
    "huge size": (file_with(one(shape=[2**70])), "x has a shape that is no list of sizes"),
    "huge product": (file_with(one(shape=[2**62] * 16)), "x has 8 bytes"),
    "too many dimensions": (file_with(one(shape=[1] * 17)), "x has no shape"),
    "three offsets": (file_with(one(offsets=[0, 4, 8])), "x has 3 data_offsets"),
    "offsets turned round": (file_with(one(offsets=[8, 0])), "x has -8 bytes, its shape asks for 8"),
    "too few bytes": (file_with(one(shape=[3])), "x has 8 bytes, its shape asks for 12"),
    "beyond the end": (file_with(one(), bytes(4)), r"it has \d+ bytes, its table of tensors asks for \d+"),
    "bytes left over": (file_with(one(), bytes(9)), r"it has \d+ bytes, its table of tensors asks for \d+"),
    "gap": (file_with(one(offsets=[1, 9]), bytes(9)), "overlap or leave gaps"),
    "overlap": (
        file_with(one() | {"y": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12)),
        "overlap or leave gaps",
    ),
    "name of many lines": (file_with({"a\nb": 1}), r"'a\\nb' has no shape"),
    "name that is no text": (file_of(b'{"\\ud800": 1}'), r"'\\ud800' has no shape"),
    "very long name": (file_with({"x" * 10_000: 1}), "x{200}' has no shape"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_each_fault_gives_one_clear_line(case: str, tmp_path: Path) -> None:
    content, message = BROKEN[case]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelFolderError, match=message) as caught:
        read_table(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()], ids=["absent", "folder"])
def test_what_is_no_file_is_named(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    make(path)
    with pytest.raises(ModelFolderError, match=r"x.safetensors: cannot be read"):
        read_table(path)


def read_or_refuse(content: bytes, folder: Path) -> None:
    """Nothing but our own error, and never more memory than the file's size explains."""
    path = folder / "x.safetensors"
    path.write_bytes(content)
    tracemalloc.start()
    table, message = {}, ""
    try:
        table = read_table(path)
    except ModelFolderError as error:
        message = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert message.isprintable()
    assert all(stored.offset + stored.size <= len(content) for stored in table.values())
    assert peak < 1_000_000 + 100 * len(content)


@given(content=st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_refused(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("f")
    read_or_refuse(content, folder)
    read_or_refuse(file_of(content), folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "F4", "x"]) | JSON,
        "shape": st.lists(st.integers(-1, 2**64), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 2**64), min_size=2, max_size=2) | JSON,
    },
)


@given(entries=st.dictionaries(st.text(max_size=4), ENTRY | JSON, max_size=4), data=st.binary(max_size=16))
@settings(max_examples=200, deadline=None)
def test_random_tables_are_refused(
    entries: dict[str, Any], data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    read_or_refuse(file_with(entries, data), tmp_path_factory.mktemp("f"))


@given(at=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), cut=st.booleans())
@settings(max_examples=200, deadline=None)
def test_mutated_files_are_read_or_refused(
    at: float, byte: int, cut: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("f")
    save_file(sample(), folder / "y.safetensors")
    content = bytearray((folder / "y.safetensors").read_bytes())
    where = int(at * len(content))
    content[where] = byte
    read_or_refuse(bytes(content[:where]) if cut else bytes(content), folder)
