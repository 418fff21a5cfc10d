"""A log file that others move away."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from tandem.errors import UsageError
from tandem.gateway.observability import log_file
from tandem.gateway.observability.log_file import LogFile


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_file, "LOOK_S", 0.0)


@pytest.mark.usefixtures("looking")
def test_a_file_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    path, moved = tmp_path / "log", tmp_path / "log.1"
    file = LogFile(path)
    file.write(b"1\n")
    path.rename(moved)
    file.write(b"2\n")
    file.write(b"3\n")
    path.unlink()
    file.write(b"4\n")
    file.close()
    assert (moved.read_bytes(), path.read_bytes()) == (b"1\n", b"4\n")
    assert path.stat().st_mode & 0o007 == 0, "others may not read who asks for what"


def test_several_processes_write_to_one_file(tmp_path: Path) -> None:
    one, other = LogFile(tmp_path / "log"), LogFile(tmp_path / "log")
    for file in (one, other, one):
        file.write(b"x\n")
    assert (tmp_path / "log").read_bytes() == b"x\nx\nx\n"


@pytest.mark.usefixtures("looking")
def test_a_file_that_cannot_be_written_any_more_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    file = LogFile(folder / "log")
    (folder / "log").unlink()
    folder.rmdir()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            file.write(b"1\n")
    assert [record.message for record in caplog.records] == [
        f"{folder / 'log'}: requests are not logged: No such file or directory"
    ]
    folder.mkdir()
    file.write(b"2\n")
    assert (folder / "log").read_bytes() == b"2\n"


@pytest.mark.usefixtures("looking")
def test_a_pipe_that_nobody_reads_holds_up_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log"
    file = LogFile(path)
    path.unlink()
    os.mkfifo(path)
    with caplog.at_level(logging.WARNING):
        file.write(b"1\n")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    file.write(b"2\n")
    assert os.read(reader, 9) == b"2\n"
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            file.write(b"x" * 4095 + b"\n")
    assert [record.message.removeprefix(f"{path}: ") for record in caplog.records] == [
        "requests are not logged: No such device or address",
        "requests are not logged: Resource temporarily unavailable",
    ]
    os.close(reader)
    file.close()


def test_a_pipe_that_nobody_reads_is_refused_at_the_start(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    with pytest.raises(UsageError, match=r"--access-log .*/log: No such device or address; choose a file"):
        LogFile(tmp_path / "log")
