"""The parent of a gateway's processes, over processes that are a few lines each."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tandem.errors import ProcessError, TandemError, UsageError
from tandem.gateway import supervisor as module
from tandem.gateway.door.listener import listen
from tandem.gateway.processes.bus import BEAT_S
from tandem.gateway.supervisor import Supervisor

PREPARED = """
import asyncio, os, signal, sys
from pathlib import Path
from tandem.errors import UsageError, ProcessError
from tandem.gateway.processes.commons import Commons
commons = Commons.inherited()
folder = Path({folder!r})
def note(what): (folder / f"{{commons.row}}.{{os.getpid()}}.{{what}}").touch()
async def main():
    await commons.bus.start()
    lives = commons.board.counter("lives")
    lives.add()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    note("started")
"""
ENDED = """
    await stopped.wait()
    note("stopped")
asyncio.run(main())
"""


async def until(holds: Callable[[], bool]) -> None:
    """Look again and again; the trial's own time ends a wait that is in vain."""
    while True:
        if holds():
            return
        await asyncio.sleep(0.01)


class Rig:
    """A supervisor of two processes, and what they have noted."""

    def __init__(self, folder: Path, what: str) -> None:
        self.folder = folder
        code = PREPARED.format(folder=str(folder)) + "".join(f"    {line}\n" for line in what.splitlines()) + ENDED
        self.sockets = listen("127.0.0.1", 0)
        self.supervisor = Supervisor(2, self.sockets, 0.1, [sys.executable, "-c", code])

    def notes(self, what: str) -> list[tuple[int, int]]:
        """Row and process id of each that has noted something."""
        found = [path.name.split(".") for path in self.folder.glob(f"*.*.{what}")]
        return sorted((int(row), int(pid)) for row, pid, _ in found)

    async def until(self, what: str, count: int) -> list[tuple[int, int]]:
        await until(lambda: len(self.notes(what)) >= count)
        return self.notes(what)


def trial(folder: Path, what: str, scenario: Callable[[Rig], Awaitable[None]]) -> Rig:
    """Run a supervisor through a scenario, then ask it to stop with SIGTERM."""

    async def run() -> Rig:
        rig = Rig(folder, what)
        running = asyncio.create_task(rig.supervisor.run())
        try:
            meanwhile = asyncio.create_task(scenario(rig))
            await asyncio.wait([running, meanwhile], return_when=asyncio.FIRST_COMPLETED, timeout=30)
            if running.done():
                meanwhile.cancel()
            else:
                meanwhile.result()
        finally:
            if not running.done():
                os.kill(os.getpid(), signal.SIGTERM)
            await running
        return rig

    return asyncio.run(run())


def test_a_process_that_is_killed_is_started_again_and_its_row_is_empty(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(rig: Rig) -> None:
        (_, pid), _ = await rig.until("started", 2)
        lives = rig.supervisor._board.counter("lives")
        assert lives.total == 2
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        await rig.until("started", 3)
        assert time.monotonic() - began < 5
        await until(lambda: lives.total == 2)

    with caplog.at_level(logging.ERROR):
        rig = trial(tmp_path, "", scenario)
    assert "gateway: process 0 was killed by signal 9 after" in caplog.text
    assert [row for row, _ in rig.notes("stopped")] == [0, 1]
    assert all(sock.fileno() == -1 for sock in rig.sockets)


def test_a_process_that_hangs_is_killed_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(rig: Rig) -> None:
        (_, pid), _ = await rig.until("started", 2)
        await asyncio.sleep(2 * BEAT_S)  # who says that it lives is left alone
        assert len(rig.notes("started")) == 2
        os.kill(pid, signal.SIGSTOP)
        await rig.until("started", 3)

    monkeypatch.setattr(module, "MISS_S", BEAT_S / 2)
    with caplog.at_level(logging.ERROR):
        rig = trial(tmp_path, "", scenario)
    assert "gateway: process 0 hangs" in caplog.text
    assert "gateway: process 0 was killed by signal 9" in caplog.text
    assert [row for row, _ in rig.notes("stopped")] == [0, 1]


def test_all_hear_the_same_and_successors_too(tmp_path: Path) -> None:
    what = """
commons.bus.subscribe("news", lambda body: note("heard-" + body.decode()))
if commons.speaks: await commons.bus.tell("news", b"1")
"""

    async def scenario(rig: Rig) -> None:
        (_, pid), _ = await rig.until("heard-1", 2)
        os.kill(pid, signal.SIGKILL)
        await rig.until("heard-1", 3)

    trial(tmp_path, what, scenario)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b'["told', "gateway: process 0 was killed by signal 9 after"),
        (b"hello\n", "gateway: process 0 has told what cannot be read; it is dropped"),
        (b"x" * 3 * 2**10, "gateway: process 0 has told more than 1024 bytes in one line, and is killed"),
    ],
)
def test_what_cannot_be_understood_ends_nobody_else(
    said: bytes, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "LONGEST", 2**10)

    async def scenario(rig: Rig) -> None:
        await rig.until("started", 3)

    what = f"""
if commons.speaks:
    commons.bus._writer.write({said!r})
    await commons.bus._writer.drain()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    with caplog.at_level(logging.ERROR):
        rig = trial(tmp_path, what, scenario)
    assert told in caplog.text
    assert [row for row, _ in rig.notes("stopped")] == [0, 1]


@pytest.mark.parametrize("error", [UsageError, ProcessError])
def test_what_one_cannot_go_on_for_ends_all(error: type[TandemError], tmp_path: Path) -> None:
    async def scenario(_: Rig) -> None:
        await asyncio.Event().wait()

    what = f"if commons.row == 1: await commons.bus.fail({error.__name__}('the port is a pear'))"
    with pytest.raises(error, match=r"^the port is a pear$"):
        trial(tmp_path, what, scenario)


def test_if_all_die_again_and_again_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.01)
    monkeypatch.setattr(module, "LIVES", 2)

    async def scenario(_: Rig) -> None:
        await asyncio.Event().wait()

    with pytest.raises(ProcessError, match=r"^gateway: its processes end again and again, the last one ended"):
        trial(tmp_path, "os._exit(3)", scenario)


def test_while_one_lives_the_other_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.01)
    monkeypatch.setattr(module, "LIVES", 2)

    async def scenario(rig: Rig) -> None:
        await rig.until("started", 5)

    trial(tmp_path, "if commons.row == 1: os._exit(3)", scenario)


def test_who_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_S", 0.2)

    async def scenario(rig: Rig) -> None:
        await rig.until("started", 2)
        await rig.until("deaf", 1)

    what = """
if commons.row == 1:
    asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note("deaf")
"""
    rig = trial(tmp_path, what, scenario)
    assert [row for row, _ in rig.notes("stopped")] == [0]
