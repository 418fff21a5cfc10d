"""The gateway under attack, in front of mock instances of both dialects: no request is lost.

`PYTHONPATH=tests python -m chaos.router` prints the whole table; docs/chaos.md says how to read it.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from chaos.router import table
from chaos.router.cluster import Ports
from chaos.router.command import TANDEM
from chaos.router.rows import ROWS, named
from chaos.router.trial import Result, Setting, play

DIALECTS = ("vllm", "native")
HERE = Path(__file__).parent
NAIVE, BUFFERING = (
    f"{sys.executable} {HERE / name} --prefill {{prefill}} --decode {{decode}} --port {{port}}"
    for name in ("naive_router.py", "buffering_router.py")
)
LOST = ("prefill-half-open", "prefill-slow")
"""Rows that no router can pass natively without early tickets: a ticket is lost on its way, so nobody releases it."""

QUICK = (("prefill-500", "native"), ("decode-cut", "vllm"))
"""Rows of every run."""


def result(name: str, dialect: str, logs: Path, router: str = TANDEM, *, strict: bool = False) -> Result:
    setting = Setting(router=router, dialect=dialect, logs=logs, ports=Ports(range(26000, 27000)), strict=strict)
    found = asyncio.run(play(named([name])[0], setting))
    print("\n".join(["", table.heading(), table.line(found), *table.remarks(found)]))
    return found


@pytest.mark.parametrize(("name", "dialect"), QUICK)
def test_every_request_is_served(name: str, dialect: str, tmp_path: Path) -> None:
    assert result(name, dialect, tmp_path).passed


@pytest.mark.full
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", [row.name for row in ROWS])
def test_the_whole_table(name: str, dialect: str, tmp_path: Path) -> None:
    assert result(name, dialect, tmp_path).passed


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("engine", ["tandem", "vllm"])
def test_the_whole_table_with_real_instances(engine: str, tmp_path: Path) -> None:
    if engine == "vllm" and shutil.which("vllm") is None:
        pytest.skip("vllm is not in PATH: docs/vllm.md says how to install it")
    command = [sys.executable, "-m", "chaos.router", "--engine", engine, "--logs", str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3500, env=environment())
    lost = [row for row in json.loads(done.stdout) if not row["passed"]]
    assert (lost, done.returncode) == ([], 0)


@pytest.mark.full
@pytest.mark.parametrize("name", ["decode-dead", "decode-black-hole"])
def test_no_ticket_is_stranded_that_no_decode_instance_may_have(name: str, tmp_path: Path) -> None:
    assert result(name, "vllm", tmp_path, strict=True).passed


@pytest.mark.full
def test_a_naive_router_is_found_out() -> None:
    """The command, in front of a router of another's that does nothing for its requests."""
    command = [sys.executable, "-m", "chaos.router", "--json", "--router", NAIVE]
    command += ["--rows", "prefill-500", "decode-cut", "decode-killed"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment())
    assert (done.returncode, done.stderr) == (1, "")
    rows = json.loads(done.stdout)
    assert not any(row["passed"] or row["faults"] for row in rows), rows
    refusing, cutting, killed = rows
    assert refusing["outcomes"]["ok"] > 10
    assert refusing["outcomes"]["failed"] >= 15
    assert any("no [DONE]" in reason["reason"] for reason in cutting["reasons"])
    assert killed["outcomes"]["failed"] >= 20
    assert "several choices on one ticket" in cutting["misuse"]


@pytest.mark.parametrize(("name", "dialect"), [("final-ticket", "native")])
def test_rows_can_be_passed(name: str, dialect: str, tmp_path: Path) -> None:
    assert result(name, dialect, tmp_path, BUFFERING).passed


@pytest.mark.full
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", [row.name for row in ROWS if not row.options])
def test_all_rows_can_be_passed(name: str, dialect: str, tmp_path: Path) -> None:
    found = result(name, dialect, tmp_path, BUFFERING)
    if name in LOST and dialect == "native":
        found.held.clear()
    assert found.passed


def environment() -> dict[str, str]:
    tests = Path(__file__).parent.parent
    return os.environ | {"PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"}
