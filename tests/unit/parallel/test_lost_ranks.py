"""A collective that fails because another rank is gone is told apart from what fails here, whatever a message says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tandem.errors import ProcessError
from tandem.parallel.place import Place
from tandem.parallel.world import joined, named


def place_of(rank: int, folder: Path) -> Place:
    return Place(rank=rank, ranks=2, local_rank=rank, meeting=f"file:{folder}/meeting")


def test_a_sum_with_a_rank_that_is_gone_is_its_fault(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, __file__, str(tmp_path)])
    with joined(place_of(0, tmp_path), torch.device("cpu")) as world:
        assert child.wait(60) == 0
        with pytest.raises(ProcessError, match=r"a sum over the ranks failed \(.*\); look at the log of the rank"):
            world.total(torch.zeros(1))


def test_what_fails_here_stays_what_it_is_whatever_it_says() -> None:
    with pytest.raises(RuntimeError, match="Socket of the gloo store"), named("step 7"):
        raise RuntimeError("Socket of the gloo store")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), named("step 7"):
        torch.zeros(2, 3) @ torch.zeros(2, 3)


if __name__ == "__main__":
    with joined(place_of(1, Path(sys.argv[1])), torch.device("cpu")):
        os._exit(0)
