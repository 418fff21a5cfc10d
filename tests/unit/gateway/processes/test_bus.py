"""What processes tell each other, from one process's end."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from tandem.errors import ProcessError, UsageError
from tandem.gateway.processes.bus import Alive, Bus, Failed, Heard, Line, Told, decoded, encoded


@dataclass
class Ends:
    """A process's bus, what it has heard on a topic, and the supervisor's end."""

    bus: Bus
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    heard: list[bytes] = field(default_factory=list)

    async def said(self) -> Line:
        """What the process says next, but that it lives."""
        while (line := decoded(await self.reader.readline())) == Alive():
            pass
        return line

    async def until(self, count: int) -> None:
        """Wait for so many messages; the trial's own time ends a wait that is in vain."""
        while True:
            if len(self.heard) >= count:
                return
            await asyncio.sleep(0)


@asynccontextmanager
async def connected(*before: Told) -> AsyncIterator[Ends]:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=theirs)
    writer.write(encoded(Heard(before)))
    bus = Bus(1, ours)
    await bus.start()
    ends = Ends(bus, reader, writer)
    bus.subscribe("news", ends.heard.append)
    yield ends
    await bus.stop()
    writer.close()


def trial(scenario: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(asyncio.wait_for(scenario(), 5))  # type: ignore[arg-type]

    run.__name__ = scenario.__name__
    return run


@trial
async def test_the_only_process_tells_itself() -> None:
    bus, heard = Bus(), list[bytes]()
    await bus.start()
    await bus.tell("news", b"1")
    bus.subscribe("news", heard.append)
    await bus.tell("news", b"2")
    await bus.tell("other", b"3")
    assert heard == [b"1", b"2"]
    assert not await bus.fail(UsageError("no"))
    await bus.stop()


@trial
async def test_who_comes_later_hears_what_was_last() -> None:
    async with connected(Told("news", b"\n{}\n", 0), Told("other", b"", 0)) as ends:
        assert ends.heard == [b"\n{}\n"]
        ends.writer.write(encoded(Told("news", b"2", 0)))
        await ends.until(2)
        assert ends.heard[-1] == b"2"


@trial
async def test_who_tells_goes_on_when_it_has_heard_it_itself() -> None:
    async with connected() as ends:
        telling = asyncio.create_task(ends.bus.tell("news", b"mine"))
        said = await ends.reader.readline()
        assert decoded(said) == Told("news", b"mine", 1)
        ends.writer.write(encoded(Told("news", b"another's", 0)))
        await ends.until(1)
        assert not telling.done()
        ends.writer.write(said)
        await telling
        assert ends.heard == [b"another's", b"mine"]


@trial
async def test_who_does_not_wait_for_it_leaves_the_order_as_it_is() -> None:
    async with connected() as ends:
        first, second = (asyncio.create_task(ends.bus.tell("news", body)) for body in (b"1", b"2"))
        lines = [await ends.reader.readline() for _ in range(2)]
        first.cancel()
        ends.writer.write(lines[0])
        await ends.until(1)
        assert not second.done()
        ends.writer.write(lines[1])
        await second


@trial
async def test_without_a_supervisor_nobody_waits() -> None:
    async with connected() as ends:
        telling = asyncio.create_task(ends.bus.tell("news", b"mine"))
        await ends.reader.readline()
        ends.writer.close()
        with pytest.raises(ConnectionError):
            await telling


@trial
async def test_a_failure_says_whose_it_is() -> None:
    async with connected() as ends:
        for error, is_usage in ((UsageError("a"), True), (ProcessError("a"), False)):
            assert await ends.bus.fail(error)
            assert await ends.said() == Failed("a", is_usage)


def test_one_who_cannot_cope_keeps_nobody_from_hearing(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        bus, heard = Bus(), list[bytes]()

        def broken(_: bytes) -> None:
            raise ZeroDivisionError

        bus.subscribe("news", broken)
        bus.subscribe("news", heard.append)
        await bus.tell("news", b"1")
        assert heard == [b"1"]

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert "a message on news could not be handled" in caplog.text
