"""The process that has the terminal leaves in the process logs what it said, and where it crashed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from recording import Recording

from tandem.training.launch.process_log import log_path, logged

CRASH = """
import ctypes, sys
from pathlib import Path
from tandem.training.launch.process_log import logged
from tandem.training.progress import Silence
with logged(Path(sys.argv[1]), Silence()):
    ctypes.string_at(0)
"""


def test_notes_errors_and_the_end_are_written_down_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, progress = log_path(tmp_path / "plog", 1, 0), Recording()

    def work() -> None:
        with logged(path, progress) as told:
            told.begin("sft", 3)
            told.note("something")
            print("take care", file=sys.stderr)
            raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        work()
    log = path.read_text()
    assert path.name == "run_log-1-0.txt"
    assert [line[20:] for line in log.splitlines()[:2]] == ["sft: begins", "something"]
    assert "take care" in log
    assert log.endswith("ValueError: no more\n")
    assert progress.begun == ["sft"]
    assert "take care" in capsys.readouterr().err


def test_a_crash_leaves_its_stacks(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CRASH, str(tmp_path / "log.txt")], check=False)
    assert done.returncode < 0
    assert "Segmentation fault" in (log := (tmp_path / "log.txt").read_text())
    assert "string_at" in log
