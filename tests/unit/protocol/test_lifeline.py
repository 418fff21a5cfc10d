from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tandem.errors import ProcessError
from tandem.protocol.lifeline import LIFELINE_VARIABLE, Lifeline, hand_lifeline_to_kernel, hold_lifeline

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


BECOMES_ANOTHER = """
import os
from tandem.protocol.lifeline import LIFELINE_VARIABLE, hand_lifeline_to_kernel
hand_lifeline_to_kernel()
os.execvp("sh", ["sh", "-c", "echo $PPID ${%s-none}; exec sleep 60"])
""".replace("%s", LIFELINE_VARIABLE)

PARENT = """
import os, subprocess, sys, time
from tandem.protocol.lifeline import Lifeline
line = Lifeline()
child = subprocess.Popen(
    [sys.executable, "-c", sys.argv[1]], pass_fds=(line.descriptor,), env={**os.environ, **line.environment}
)
line.handed_over()
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells of a parent's end on Linux only")
def test_a_child_that_became_another_program_ends_with_a_killed_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, BECOMES_ANOTHER], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert parent.stdout.readline() == f"{parent.pid} none\n"
        os.kill(pid, 0)
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 5
        while psutil.pid_exists(pid):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_parent_that_is_gone_already_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Lifeline()
    monkeypatch.setenv(LIFELINE_VARIABLE, str(os.dup(line.descriptor)))
    line.close()
    with pytest.raises(ProcessError, match="the process that started this one is gone"):
        hand_lifeline_to_kernel()
    assert hand_lifeline_to_kernel() is False
