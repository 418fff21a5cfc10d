"""The access log: lines that hold nothing a client wrote, and a file that may be moved away."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path

import pytest

from tandem.errors import UsageError
from tandem.gateway import access_log
from tandem.gateway.access_log import AccessLog, LogFile, _json, _text
from tandem.gateway.visibility import Visibility


def test_without_a_file_nothing_is_in_the_way_of_a_request() -> None:
    assert AccessLog(Visibility()).middlewares == []


def test_a_line_of_text_is_one_line_whatever_stands_in_it() -> None:
    told = {"id": "a.b-1", "path": "/v1/x", "tries": 0, "gone": None, "odd": 'a b\n"=\x1b', "ms": 1.5, "empty": ""}
    line = _text(told)
    assert line == b'id=a.b-1 path=/v1/x tries=0 odd="a b\\n\\"=\\u001b" ms=1.5 empty=""\n'
    assert re.fullmatch(rb'(?:\w+=(?:[\w.:/@-]+|"[^"\\\n]*(?:\\.[^"\\\n]*)*") ?)+\n', line)


def test_a_line_of_json_is_an_object() -> None:
    assert json.loads(_json({"a": "x\ny", "b": None, "c": 0})) == {"a": "x\ny", "c": 0}
    assert _json({"a": "x\ny"}).count(b"\n") == 1


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_log, "LOOK_S", 0.0)


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


def test_a_file_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--access-log .*/gone/log: No such file"):
        AccessLog(Visibility(access_log=str(tmp_path / "gone" / "log")))


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


def test_standard_error_stays_open(capfd: pytest.CaptureFixture[str]) -> None:
    log = AccessLog(Visibility(access_log="-"))
    assert log._file is not None
    log._file.write(b"line\n")
    log.close()
    os.write(2, b"more\n")
    assert capfd.readouterr().err == "line\nmore\n"
