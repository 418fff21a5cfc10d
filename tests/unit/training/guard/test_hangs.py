"""Hangs of real processes: each rank says where it is, and the reports together say who is to blame."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tandem.training.guard.diagnosis import HUNG, collect

ALONE = """
    import sys, threading, time
    from pathlib import Path
    from tandem.training.guard.hang import HangWatch
    with HangWatch(Path(sys.argv[1]), 0, 1, floor=0.4, grace=0.0) as watch:
        for step in range(1, 4):
            watch.ended(step)
        with watch.allowing(30.0):
            time.sleep(0.8)
        def stand_still():
            threading.Event().wait()
        if sys.argv[2] == "hang":
            stand_still()
"""
TOGETHER = """
    import itertools, sys, time
    from pathlib import Path
    import torch, torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from tandem.training.guard.hang import HangWatch

    folder, rank, way = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "meeting"), 2), rank=rank, world_size=2)
    model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))
    mesh = init_device_mesh("cpu", (2,))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)

    def step():
        model(torch.ones(2, 8)).sum().backward()

    def dawdle(*args):
        if way == "hold":
            sum(itertools.repeat(1, 10**13))
        time.sleep(100)

    step()
    with HangWatch(folder, rank, 2, floor=3.0, grace=2.0) as watch:
        watch.ended(6)
        if rank == 1 and way == "backward":
            model[1].register_full_backward_hook(dawdle)
        elif rank == 1:
            model[2].register_forward_pre_hook(dawdle, prepend=True)
        step()
"""


def start(program: str, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(program), str(folder), *arguments]
    environment = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environment)


def test_a_process_that_stands_still_says_where(tmp_path: Path) -> None:
    process = start(ALONE, tmp_path, "hang")
    _, told = process.communicate(timeout=60)
    assert process.returncode == HUNG
    assert told.startswith("rank 0: step 4, for ")
    assert "not in any collective: in wait, " in told
    diagnosis = collect(tmp_path)
    assert diagnosis is not None
    assert diagnosis.verdict.startswith("no rank is in a collective")
    assert "in stand_still" in (tmp_path / "rank_00000.stacks.txt").read_text()


def test_a_process_that_ends_leaves_nothing(tmp_path: Path) -> None:
    process = start(ALONE, tmp_path, "end")
    assert process.communicate(timeout=60) == (None, "")
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []
    assert collect(tmp_path) is None


@pytest.mark.full
@pytest.mark.parametrize(("way", "waits"), [("forward", "all_gather of 2"), ("backward", "reduce_scatter of 1")])
def test_the_rank_that_does_not_come_is_to_blame(way: str, waits: str, tmp_path: Path) -> None:
    ranks = [start(TOGETHER, tmp_path, str(rank), way) for rank in range(2)]
    told = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [HUNG, HUNG], told
    diagnosis = collect(tmp_path)
    assert diagnosis is not None
    assert (diagnosis.culprits, diagnosis.reports[0].waits_in()) == ([1], waits)
    assert diagnosis.verdict == "rank 1 did not come to the collective that the others wait in"
    assert "step 7" in told[0]
    assert f" in {waits}" in told[0]
    assert "in dawdle, <string>:" in str(diagnosis.reports[1])
    assert "; its last was all_gather number " in str(diagnosis.reports[1])


@pytest.mark.full
def test_a_rank_that_holds_the_interpreter_is_found_by_the_others(tmp_path: Path) -> None:
    ranks = [start(TOGETHER, tmp_path, str(rank), "hold") for rank in range(2)]
    try:
        ranks[0].communicate(timeout=120)
        assert ranks[0].returncode == HUNG
        stacks, end = tmp_path / "rank_00001.stacks.txt", time.monotonic() + 30
        while not stacks.read_text() and time.monotonic() < end:
            time.sleep(0.1)
        time.sleep(0.2)
        diagnosis = collect(tmp_path)
        assert diagnosis is not None
        assert diagnosis.culprits == [1]
        assert "never lets go of the interpreter" in diagnosis.verdict
        assert "in dawdle" in diagnosis.verdict
    finally:
        ranks[1].kill()
        ranks[1].communicate()
