from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tandem.errors import ProcessError
from tandem.protocol.lifeline import LIFELINE_VARIABLE, Lifeline, hold_lifeline

CHILD = """
import os, signal, sys, time
from tandem.protocol.lifeline import LIFELINE_VARIABLE, hold_lifeline
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(hold_lifeline(grace=0.3), LIFELINE_VARIABLE in os.environ, flush=True)
time.sleep(60)
"""


def child(lifeline: Lifeline, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments],
        stdout=subprocess.PIPE, text=True, pass_fds=(lifeline.descriptor,), env={**os.environ, **lifeline.environment},
    )  # fmt: skip
    lifeline.handed_over()
    assert process.stdout is not None
    assert process.stdout.readline() == "True False\n"
    return process


@pytest.mark.parametrize(("arguments", "code"), [([], -signal.SIGTERM), (["stubborn"], 1)])
def test_child_ends_when_the_pipe_does(arguments: list[str], code: int) -> None:
    lifeline = Lifeline()
    with child(lifeline, *arguments) as process:
        time.sleep(0.2)
        assert process.poll() is None
        lifeline.close()
        lifeline.close()
        assert process.wait(5) == code


def test_siblings_do_not_keep_each_other_alive() -> None:
    first, second = Lifeline(), Lifeline()
    with child(first) as one, child(second) as two:
        first.close()
        assert one.wait(5) == -signal.SIGTERM
        assert two.poll() is None
        second.close()
        assert two.wait(5) == -signal.SIGTERM


def test_without_the_variable_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LIFELINE_VARIABLE, raising=False)
    assert hold_lifeline() is False


@pytest.mark.parametrize("value", ["x", "987654", "99999999999999999999", ""])
def test_a_wrong_variable_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(LIFELINE_VARIABLE, value)
    with pytest.raises(ProcessError, match=f"{LIFELINE_VARIABLE}={value} is not an open pipe; unset it"):
        hold_lifeline()
