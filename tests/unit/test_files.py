"""Files and folders that are whole or not there, even when the writer is killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tandem.errors import CheckpointError
from tandem.files import json_bytes, read_json_object, whole_folder, write_whole


def test_written_files_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with whole_folder(tmp_path / "f") as part:
            (part / "a").write_text("a")
            raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with whole_folder(tmp_path / "f") as part:
        (part / "deep").mkdir()
        (part / "deep" / "a").write_text("a")
    assert (tmp_path / "f" / "deep" / "a").read_text() == "a"


KILLED = """
import os, signal, sys
from pathlib import Path
from tandem.files import whole_folder, write_whole
base = Path(sys.argv[1])
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
Path.rename = Path.replace = die
if sys.argv[2] == "folder":
    with whole_folder(base / "f") as part:
        (part / "a").write_text("half")
else:
    write_whole(base / "file", b"new")
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_kill_before_the_last_step_leaves_the_old_state(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), kind], check=False)
    assert killed.returncode == -9
    assert (tmp_path / "file").read_bytes() == b"old"
    assert not (tmp_path / "f").exists()
    assert not any(path.name in ("f", "file.part") for path in tmp_path.iterdir())


def test_json_objects_round_trip_and_fail_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(json_bytes({"ä": [1]}))
    assert read_json_object(path, CheckpointError) == {"ä": [1]}
    for content in ("{", "[]", "\0"):
        path.write_text(content)
        with pytest.raises(CheckpointError, match=str(path)):
            read_json_object(path, CheckpointError)
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json_object(path, CheckpointError)
