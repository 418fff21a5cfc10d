"""The table of a `.bin` file: where its tensors lie, and that nothing in it is ever run."""

from __future__ import annotations

import os
import tomllib
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tandem.errors import ModelFolderError
from tandem.model.weights import torch_file
from tandem.model.weights.dtypes import STORED_DTYPES
from tandem.model.weights.torch_file import read_table


def sample() -> dict[str, torch.Tensor]:
    whole = torch.arange(40, dtype=torch.float32).view(10, 4)
    return {
        "matrix": torch.arange(6, dtype=torch.float32).view(2, 3),
        "bias": torch.arange(5).to(torch.bfloat16),
        "eight": torch.arange(4).to(torch.float8_e4m3fn),
        "part of a storage": whole[2:5],
        "shared": whole,
        "parameter": torch.nn.Parameter(torch.ones(3)),
    }


def check_table(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    table, content = read_table(path), path.read_bytes()
    assert list(table) == list(tensors)
    for name, tensor in tensors.items():
        stored = table[name]
        assert (stored.path, stored.dtype, stored.shape) == (path, STORED_DTYPES[tensor.dtype], tuple(tensor.shape))
        raw = content[stored.offset : stored.offset + stored.size]
        assert raw == tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes(), name


@pytest.mark.parametrize("container", [dict, OrderedDict])
def test_tensors_lie_where_the_table_says(container: type[dict[str, Any]], tmp_path: Path) -> None:
    torch.save(container(sample()), tmp_path / "x.bin")
    check_table(tmp_path / "x.bin", sample())


def test_older_torch_gives_the_same_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.bin"
    torch.save(sample(), path)
    loaded = torch_file._load_faked(path)
    monkeypatch.setattr(torch_file, "_load", lambda _: loaded)
    check_table(path, sample())


def test_names_that_are_no_text_are_spelled_out(tmp_path: Path) -> None:
    torch.save({1: torch.ones(2)}, tmp_path / "x.bin")
    assert list(read_table(tmp_path / "x.bin")) == ["1"]


class Malice:
    """Unpickling it runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_malicious_pickle_does_not_run(zipped: bool, tmp_path: Path) -> None:
    path, marker = tmp_path / "x.bin", tmp_path / "ran"
    evil = {"weight": torch.ones(2), "evil": Malice(f"touch {marker}")}
    torch.save(evil, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelFolderError, match=r"posix\.system" if zipped else "written by torch before 1.6") as caught:
        read_table(path)
    assert not marker.exists()
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def save_legacy(path: Path) -> None:
    torch.save(sample(), path, _use_new_zipfile_serialization=False)


def cut(path: Path) -> None:
    torch.save(sample(), path)
    path.write_bytes(path.read_bytes()[:-100])


def compress(path: Path) -> None:
    torch.save(sample(), path)
    rewrite(path, zipfile.ZIP_DEFLATED, {})


def turn_bytes(path: Path) -> None:
    torch.save(sample(), path)
    rewrite(path, zipfile.ZIP_STORED, {"byteorder": b"big"})


def drop_table(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/version", "3")


def table(path: Path, content: bytes) -> None:
    torch.save(sample(), path)
    rewrite(path, zipfile.ZIP_STORED, {"data.pkl": content})


def claim(path: Path, record: str, size: int) -> None:
    """Let the list at the end of the archive say that a record has this size."""
    torch.save(sample(), path)
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    content = bytearray(path.read_bytes())
    at = content.index(f"x/{record}".encode(), start)
    content[at - 22 : at - 18] = size.to_bytes(4, "little")  # the field 22 bytes before the name
    path.write_bytes(content)


def order(path: Path, size: int) -> None:
    torch.save(sample(), path)
    rewrite(path, zipfile.ZIP_STORED, {"byteorder": b"little" * size})


def rewrite(path: Path, compression: int, changed: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, changed.get(name.rpartition("/")[2], content))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda p: p.write_bytes(b""), "damaged, or was written by torch before 1.6"),
    "legacy": (save_legacy, "damaged, or was written by torch before 1.6"),
    "cut": (cut, "is damaged"),
    "no table": (drop_table, "is damaged"),
    "compressed": (compress, "compressed or of another byte order"),
    "a table larger than the file": (
        lambda p: claim(p, "data.pkl", 2**31),
        "record x/data.pkl claims 2147483648 bytes",
    ),
    "many numbers": (lambda p: claim(p, "data/0", 2**31), "record x/data/0 claims 2147483648 bytes"),
    "a long byte order": (lambda p: order(p, 9), "record x/byteorder claims 54 bytes"),
    "a bytearray": (lambda p: torch.save({"b": bytearray(3)}, p), r"its table asks for \w+\.bytearray, of which no"),
    "no numbers": (
        lambda p: torch.save({"m": torch.empty(2, device="meta")}, p),
        r"where m lies: .* none of 2\.9 to 2",
    ),
    "other byte order": (turn_bytes, "compressed or of another byte order"),
    "a list": (lambda p: torch.save([torch.ones(2)], p), "holds no table of tensors"),
    "a tensor": (lambda p: torch.save(torch.ones(2), p), "holds no table of tensors"),
    "training state": (lambda p: torch.save(sample() | {"epoch": 3}, p), "epoch is no plain tensor"),
    "nested": (lambda p: torch.save({"model": sample()}, p), "model is no plain tensor"),
    "sparse": (
        lambda p: torch.save({"s": torch.eye(3).to_sparse()}, p),
        "asks for torch._utils._rebuild_sparse_tensor",
    ),
    "a set": (lambda p: torch.save({"s": {1}}, p), r"its table asks for \w+\.set"),
    "much memory": (
        lambda p: table(p, b"\x80\x02ctorch\nFloatTensor\nJ\x00\x00\x00\x7f\x85R."),
        r"its table asks for torch\.FloatTensor",
    ),
    "another class": (
        lambda p: table(p, b"\x80\x02))\x81."),
        r"\(its table makes other things than tensors\)",
    ),
    "an unknown operation": (lambda p: table(p, b"\x80\x02\x93."), r"\((?!Weights only)"),
    "complex": (lambda p: torch.save({"c": torch.ones(2, dtype=torch.complex64)}, p), "c is no plain tensor"),
    "transposed": (lambda p: torch.save({"t": torch.ones(2, 3).t()}, p), "t does not lie in rows"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_each_fault_gives_one_clear_line(case: str, tmp_path: Path) -> None:
    spoil, message = BROKEN[case]
    path = tmp_path / "x.bin"
    spoil(path)
    with pytest.raises(ModelFolderError, match=message) as caught:
        read_table(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert "safe_globals" not in str(caught.value)


@pytest.mark.parametrize("record", ["byteorder", "data.pkl"])
def test_what_is_compressed_is_not_unfolded(record: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.bin"
    torch.save(sample(), path)
    rewrite(path, zipfile.ZIP_DEFLATED, {record: bytes(1 << 20)})
    assert path.stat().st_size < 10_000

    def read(*_: object) -> bytes:
        raise AssertionError("a record is read before its compression was looked at")

    monkeypatch.setattr(zipfile.ZipFile, "read", read)
    with pytest.raises(ModelFolderError, match="compressed or of another byte order"):
        read_table(path)


def test_the_table_is_of_a_limited_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.bin"
    torch.save(sample(), path)
    monkeypatch.setattr(torch_file, "LONGEST_TABLE", 100)
    with pytest.raises(ModelFolderError, match=r"record x/data\.pkl claims \d+ bytes"):
        read_table(path)


def test_the_supported_versions_are_those_of_the_project() -> None:
    fields = tomllib.loads((Path(__file__).parents[4] / "pyproject.toml").read_text())
    needed = next(line for line in fields["project"]["dependencies"] if line.startswith("torch>"))
    first, beyond = needed.removeprefix("torch>=2.").split(",<2.")
    assert f"2.{first} to 2.{int(beyond) - 1}" == torch_file.SUPPORTED


@example(at=0.017578125, byte=6, shorten=False)  # the record says that more comes before its bytes
@given(at=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), shorten=st.booleans())
@settings(max_examples=150, deadline=None)
def test_mutated_files_are_read_or_refused(
    at: float, byte: int, shorten: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("f") / "x.bin"
    torch.save({"a": torch.ones(2, 3), "b": torch.ones(4)}, path)
    content = bytearray(path.read_bytes())
    where = int(at * len(content))
    content[where] = byte
    path.write_bytes(content[:where] if shorten else content)
    table, message = {}, ""
    try:
        table = read_table(path)
    except ModelFolderError as error:
        message = str(error)
    assert message.isprintable()
    assert all(one.offset + one.size <= path.stat().st_size for one in table.values())
