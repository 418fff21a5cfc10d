"""One process at a time at a place, and others that only look."""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path

import pytest
from recording import Recording

from tandem.errors import UsageError
from tandem.training.alone import LOOK_S, alone_at, at_work


def test_who_only_looks_keeps_nobody_out(tmp_path: Path) -> None:
    place = tmp_path / "run"
    with alone_at(place, Recording(), work="trains", wait=False):
        assert at_work(place) is not None
    assert at_work(place) is None
    with (tmp_path / ".run.lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        ended = threading.Timer(LOOK_S / 2, fcntl.flock, (looking, fcntl.LOCK_UN))
        ended.start()
        with alone_at(place, Recording(), work="trains", wait=False):
            ended.join()


def test_who_works_does(tmp_path: Path) -> None:
    with (
        alone_at(tmp_path / "run", Recording(), work="trains", wait=False),
        pytest.raises(UsageError, match="trains there; wait for it"),
        alone_at(tmp_path / "run", Recording(), work="trains", wait=False),
    ):
        pass
