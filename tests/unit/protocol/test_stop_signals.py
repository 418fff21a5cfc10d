"""The signals that ask a process to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal

import pytest

from tandem.protocol.stop_signals import STOP_SIGNALS, on_stop, refuse_restart


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_each_of_them_stops(number: int) -> None:
    async def scenario() -> None:
        asked = asyncio.Event()
        on_stop(asked.set)
        os.kill(os.getpid(), number)
        assert await asyncio.wait_for(asked.wait(), 5)

    before = signal.signal(number, signal.SIG_DFL)  # whatever the tests themselves were started with
    try:
        asyncio.run(scenario())
    finally:
        signal.signal(number, before)


def test_who_was_started_with_nohup_outlives_its_terminal() -> None:
    async def scenario() -> None:
        asked = asyncio.Event()
        on_stop(asked.set)
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.05)
        assert not asked.is_set()

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        asyncio.run(scenario())
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_restart_that_was_asked_of_somebody_else_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        refuse_restart()
        os.kill(os.getpid(), signal.SIGUSR1)
        await asyncio.sleep(0.05)

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert "use `tandem topology restart`" in caplog.text
