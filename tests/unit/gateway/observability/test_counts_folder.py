"""The folder of what the processes of a gateway count, and what is left of those whose gateway was killed."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import pytest

from tandem.gateway.observability.counts_folder import PREFIX, YOUNG_S, CountsFolder


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def aged(folder: Path | str) -> None:
    (Path(folder) / "counter_0.db").touch()
    then = time.time() - 2 * YOUNG_S
    os.utime(folder, (then, then))


def test_it_is_taken_out_at_the_end(temporary: Path) -> None:
    folder = CountsFolder()
    aged(folder.path)
    folder.close()
    assert list(temporary.iterdir()) == []


def test_what_a_killed_gateway_left_behind_is_taken_out_once_its_last_process_is_gone(temporary: Path) -> None:
    killed = CountsFolder()
    aged(killed.path)
    inherited = os.dup(killed.descriptor)
    os.close(killed.descriptor)
    CountsFolder().close()
    assert [str(path) for path in temporary.iterdir()] == [killed.path]
    os.close(inherited)
    CountsFolder().close()
    assert list(temporary.iterdir()) == []
    killed._folder.cleanup()


def test_what_is_nobodys_yet_or_something_else_is_left_alone(temporary: Path) -> None:
    young, other, link = temporary / f"{PREFIX}young", temporary / "other", temporary / f"{PREFIX}link"
    young.mkdir()
    other.mkdir()
    aged(other)
    link.symlink_to(other)
    CountsFolder().close()
    assert sorted(temporary.iterdir()) == sorted((young, other, link))
    assert list(other.iterdir())
