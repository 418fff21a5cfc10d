"""The whole quickstart, from nothing to an answer; minutes long, so only `./check --full` runs it."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]

COMMAND = [sys.executable, "-m", "tandem", "quickstart", "--once"]


def quickstart(out: Path, *options: str) -> str:
    done = subprocess.run(
        [*COMMAND, "--out", str(out), *options], capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_from_nothing_to_an_answer_and_again(tmp_path: Path) -> None:
    said = quickstart(tmp_path)
    for stage in ("corpus", "tokenizer", "tokens", "pretrain", "sft"):
        assert f"{stage}: done" in said
    handed = re.findall(r"computed (\d+) prompt tokens and handed over ([\d,]+) bytes", said)
    # 3 layers, keys and values, 2 kv heads of 32, fp32; blocks of 16 tokens travel whole.
    assert [int(moved.replace(",", "")) for _, moved in handed] == [
        math.ceil(int(tokens) / 16) * 16 * 3 * 2 * 2 * 32 * 4 for tokens, _ in handed
    ]
    assert said.count("computed 0 of them again") == 2
    for stage in ("pretrain", "sft"):
        assert (tmp_path / stage / "training_loss.png").read_bytes().startswith(b"\x89PNG")

    again = quickstart(tmp_path)
    assert again.count("there already, used again") == 5
    answers = [re.findall(r"--- (?:completion|chat):.*?\n(.*?)\n---", text, re.S) for text in (said, again)]
    assert answers[0] == answers[1], "the same model and the same seeds give the same answers"


def test_two_processes_train_it_as_well(tmp_path: Path) -> None:
    said = quickstart(tmp_path, "--ranks", "2", "--device", "auto")
    assert said.count("computed 0 of them again") == 2
    logs = [path.name for path in sorted(tmp_path.glob("*/plog/run_log-*"))]
    assert logs == ["run_log-1-0.txt", "run_log-1-1.txt"] * 2
