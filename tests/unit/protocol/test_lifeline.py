from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tandem.errors import ProcessError
from tandem.protocol.lifeline import LIFELINE_VARIABLE, Lifeline, hold_lifeline, leave_watcher

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
import os, sys
from tandem.protocol.lifeline import LIFELINE_VARIABLE, leave_watcher
os.setsid()
leave_watcher(grace=0.5)
program = "trap '' TERM; " if "deaf" in sys.argv else ""
os.execvp("sh", ["sh", "-c", program + "sleep 60 & echo $! ${%s-none}; wait; sleep 60"])
""".replace("%s", LIFELINE_VARIABLE)

PARENT = """
import os, subprocess, sys, time
from tandem.protocol.lifeline import Lifeline
line = Lifeline()
child = subprocess.Popen(
    [sys.executable, "-c", *sys.argv[1:]], pass_fds=(line.descriptor,), env={**os.environ, **line.environment}
)
line.handed_over()
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["plain", "deaf"])
def test_a_child_that_became_another_program_ends_with_a_killed_parent(kind: str) -> None:
    """Whatever it started itself too, and though it ignores SIGTERM."""
    command = [sys.executable, "-c", PARENT, BECOMES_ANOTHER, kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        grandchild, variable = parent.stdout.readline().split()
        assert variable == "none"
        watcher = next(one.pid for one in psutil.Process(pid).children() if one.pid != int(grandchild))
        parent.kill()
        parent.wait()
        assert all(ended(one) for one in (pid, int(grandchild), watcher))


def test_the_watcher_ends_with_what_it_watches_over() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, BECOMES_ANOTHER, "plain"], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        grandchild = int(parent.stdout.readline().split()[0])
        watcher = next(one.pid for one in psutil.Process(pid).children() if one.pid != grandchild)
        os.kill(pid, signal.SIGKILL)
        assert ended(watcher)
        os.kill(grandchild, signal.SIGKILL)
        parent.kill()


def ended(pid: int) -> bool:
    """Whether a process is gone within a few seconds; one that nobody has waited for is."""
    deadline = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_without_a_lifeline_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LIFELINE_VARIABLE, raising=False)
    assert leave_watcher() is False
