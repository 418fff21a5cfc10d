"""The access log: lines that hold nothing a client wrote, and a file that may be moved away."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tandem.errors import UsageError
from tandem.gateway.observability.access_log import AccessLog, _json, _text
from tandem.gateway.observability.visibility import Visibility


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


def test_a_file_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--access-log .*/gone/log: No such file"):
        AccessLog(Visibility(access_log=str(tmp_path / "gone" / "log")))


def test_standard_error_stays_open(capfd: pytest.CaptureFixture[str]) -> None:
    log = AccessLog(Visibility(access_log="-"))
    assert log._file is not None
    log._file.write(b"line\n")
    log.close()
    os.write(2, b"more\n")
    assert capfd.readouterr().err == "line\nmore\n"
