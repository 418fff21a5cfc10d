"""Ctrl-C while a command starts: one line and exit code 130, not a traceback of whatever is being imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tandem.cli

PRESSED = """
import os, signal, sys

class Pressed:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
sys.meta_path.insert(0, Pressed())
sys.argv = ["tandem", *{words!r}]
from tandem.cli import main
main()
"""


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("cyclopts", ["--version"]),
        ("cyclopts.core", ["--help"]),
        ("tandem.cli.ranktable", ["ranktable", "gen"]),
        ("tandem.topology.rank_table_set", ["ranktable", "gen", "--api-server"]),
    ],
)
def test_it_is_answered_in_one_line(module: str, words: list[str]) -> None:
    code = PRESSED.format(module=module, words=words)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "tandem: stopped\n")


WRAPPED = """
import os, signal, sys
import tandem.cli

def run(arguments):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()
    except KeyboardInterrupt:
        raise ValueError("an error of a library's own") from None

signal.signal(signal.SIGINT, signal.default_int_handler)
tandem.cli.run = run
tandem.cli.main()
"""


def test_a_library_that_makes_an_error_of_its_own_of_it_changes_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", WRAPPED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "tandem: stopped\n")


def test_next_to_nothing_is_imported_before() -> None:
    code = "import sys; import tandem.cli; print(len(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, signal, typing; before = set(sys.modules); {code}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout) <= 4  # tandem, tandem.cli, tandem.errors, __future__


def test_a_command_that_is_interrupted_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(tandem.cli, "_run", interrupted)
    assert tandem.cli.run(["x"]) == 130
    assert capsys.readouterr().err == "tandem: stopped\n"
