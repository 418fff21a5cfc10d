"""Collectives over real connections: right numbers, and an error where a rank is gone. Here the ranks are threads.

As processes they are tested with the engine's.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from tandem.errors import ProcessError
from tandem.parallel import collectives
from tandem.parallel.collectives import ProcessGroup, Solo

CPU = torch.device("cpu")


@pytest.mark.parametrize(("size", "dtype"), [(2, torch.bfloat16), (3, torch.float32)])
def test_sums_and_gathers(size: int, dtype: torch.dtype, tmp_path: Path) -> None:
    @torch.inference_mode()
    def work(rank: int) -> tuple[list[list[float]], list[list[float]]]:
        group = ProcessGroup(CPU, rank, size)
        group.meet(str(tmp_path / "file"))
        group.join()
        summed = torch.full((2, 3), rank + 1, dtype=dtype)
        assert group.all_reduce(summed) is summed
        return summed.tolist(), group.all_gather(torch.full((3, 2), rank, dtype=dtype).t()).tolist()

    total, row = float(sum(range(size + 1))), [float(rank) for rank in range(size) for _ in range(3)]
    with ThreadPoolExecutor(size) as pool:
        assert list(pool.map(work, range(size))) == [([[total] * 3] * 2, [row] * 2)] * size


def test_alone_everything_is_there_already() -> None:
    x = torch.arange(6).view(2, 3)
    group = Solo()
    assert (group.rank, group.size) == (0, 1)
    assert group.all_reduce(x) is x
    assert group.all_gather(x) is x


def test_what_torch_raises_names_the_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "TIMEOUT", timedelta(seconds=0.5))
    group = ProcessGroup(CPU, 1, 2)
    group.meet(str(tmp_path / "nobody_else"))
    with pytest.raises(ProcessError, match=r"rank 1 of 2: joining the other ranks failed \(.+\); restart the instance"):
        group.join()
    group.abort()


def test_a_meeting_whose_folder_is_gone_is_no_place_to_wait_at(tmp_path: Path) -> None:
    with pytest.raises(ProcessError, match=r"rank 0 of 2: .*/gone/meeting is gone; restart the instance"):
        ProcessGroup(CPU, 0, 2).meet(str(tmp_path / "gone" / "meeting"))
