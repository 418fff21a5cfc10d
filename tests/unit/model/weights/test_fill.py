"""Parameters filled from files: the right rows, converted or not, in pieces of any size; and files that fail."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tandem.errors import ModelFolderError
from tandem.model.families.family import Rows
from tandem.model.weights import fill as filling
from tandem.model.weights.fill import fill
from tandem.model.weights.fit import Piece, Scales
from tandem.model.weights.memory import LARGE, fresh
from tandem.model.weights.safetensors_file import read_table

CPU = torch.device("cpu")


def stored(folder: Path, **tensors: Tensor) -> dict[str, Piece]:
    """A piece for each tensor, which is a parameter of that name."""
    save_file(tensors, folder / "x.safetensors")
    return {name: Piece(one, 0, Rows(name)) for name, one in read_table(folder / "x.safetensors").items()}


@pytest.fixture(params=[1, 3, 2**30], ids=["1 row", "few rows", "whole"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of one row, of a few rows with a rest, and of everything."""
    monkeypatch.setattr(filling, "CHUNK", request.param * 7 * 4)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("theirs", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ours", [torch.float32, torch.float16, torch.bfloat16])
def test_numbers_arrive_in_any_dtype(theirs: torch.dtype, ours: torch.dtype, tmp_path: Path) -> None:
    matrix, vector = torch.randn(10, 7).to(theirs), torch.randn(5).to(theirs)
    pieces = stored(tmp_path, matrix=matrix, vector=vector)
    targets = {"matrix": fresh((10, 7), ours, CPU), "vector": fresh((5,), ours, CPU)}
    fill(targets, pieces.values())
    assert torch.equal(targets["matrix"], matrix.to(ours))
    assert torch.equal(targets["vector"], vector.to(ours))


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("ours", [torch.float32, torch.bfloat16])
def test_fused_rows_and_stacked_experts_are_taken_apart(ours: torch.dtype, tmp_path: Path) -> None:
    fused, experts = torch.randn(9, 7), torch.randn(2, 4, 7)
    table = stored(tmp_path, fused=fused, first=experts[0], second=experts[1])
    pieces = [
        Piece(table["fused"].stored, 0, Rows("q")),
        Piece(table["fused"].stored, 4, Rows("k")),
        Piece(table["first"].stored, 0, Rows("experts", 0)),
        Piece(table["second"].stored, 0, Rows("experts", 1)),
    ]
    targets = {"q": fresh((4, 7), ours, CPU), "k": fresh((5, 7), ours, CPU), "experts": fresh((2, 4, 7), ours, CPU)}
    fill(targets, pieces)
    assert torch.equal(torch.cat((targets["q"], targets["k"])), fused.to(ours))
    assert torch.equal(targets["experts"], experts.to(ours))


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
def test_block_quantised_rows_are_dequantised(scale_dtype: torch.dtype, tmp_path: Path) -> None:
    weight, scales = torch.randn(10, 7).to(torch.float8_e4m3fn), torch.rand(3, 2).to(scale_dtype)
    table = stored(tmp_path, weight=weight, scales=scales)
    block = Scales(table["scales"].stored, (4, 5))
    pieces = [Piece(table["weight"].stored, first, Rows(name), block) for name, first in (("up", 0), ("down", 3))]
    targets = {"up": fresh((3, 7), torch.bfloat16, CPU), "down": fresh((7, 7), torch.bfloat16, CPU)}
    fill(targets, pieces)
    direct = weight.float() * scales.float()[torch.arange(10) // 4][:, torch.arange(7) // 5]
    assert torch.equal(torch.cat((targets["up"], targets["down"])), direct.bfloat16())


@pytest.mark.parametrize("ours", [torch.float32, torch.bfloat16])
def test_several_threads_fill_large_parameters(
    ours: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    shape = (2 * LARGE // 1000, 1000)
    large = torch.randn(shape)
    target = fresh(shape, ours, CPU)
    fill({"large": target}, stored(tmp_path, large=large).values())
    assert torch.equal(target, large.to(ours))


def test_chunks_are_made_when_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = []

    def count(handle: int, target: Tensor, offset: int, path: Path) -> None:
        there.append(sum(type(one) is filling._Chunk for one in gc.get_objects()) if not there else 0)
        read_into(handle, target, offset, path)

    read_into = filling.read_into
    monkeypatch.setattr(filling, "read_into", count)
    monkeypatch.setattr(filling, "CHUNK", 7 * 4)
    matrix, target = torch.randn(300, 7), torch.empty(300, 7)
    fill({"matrix": target}, stored(tmp_path, matrix=matrix).values())
    assert torch.equal(target, matrix)
    assert len(there) == 300
    assert there[0] <= 2 * torch.get_num_threads()


@pytest.mark.parametrize("fault", [KeyboardInterrupt, ModelFolderError])
def test_an_error_ends_the_other_threads(
    fault: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def faulty(*_: object) -> None:
        begun.append(None)
        if len(begun) == 1:
            raise fault("here")
        time.sleep(0.05)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(filling, "CHUNK", 7 * 4)
    pieces = stored(tmp_path, matrix=torch.randn(300, 7))
    monkeypatch.setattr(filling, "read_into", faulty)
    with pytest.raises(fault, match="here"):
        fill({"matrix": torch.empty(300, 7)}, pieces.values())
    assert len(begun) < 100


def test_a_fault_of_ours_is_not_taken_for_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*_: object) -> None:
        raise IndexError("a fault of ours")

    pieces = stored(tmp_path, matrix=torch.randn(10, 7))
    monkeypatch.setattr(filling, "read_into", faulty)
    with pytest.raises(IndexError, match="a fault of ours"):
        fill({"matrix": torch.empty(10, 7)}, pieces.values())


def test_a_file_that_became_shorter_is_named(tmp_path: Path) -> None:
    pieces = stored(tmp_path, matrix=torch.randn(10, 7))
    path = tmp_path / "x.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelFolderError, match=r"x.safetensors: became shorter while it was read"):
        fill({"matrix": torch.empty(10, 7)}, pieces.values())


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    pieces = stored(tmp_path, matrix=torch.randn(10, 7))
    (tmp_path / "x.safetensors").unlink()
    with pytest.raises(ModelFolderError, match=r"x.safetensors: cannot be read \(No such file"):
        fill({"matrix": torch.empty(10, 7)}, pieces.values())
