"""Connections are taken one at a time, first by who has fewer."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import cast

import pytest
import uvloop

from tandem.gateway.door import turnstile as module
from tandem.gateway.door.listener import listen
from tandem.gateway.door.turnstile import SLACK, Turnstile
from tandem.gateway.processes.board import Board, Counter, shared_memory


class Greeting(asyncio.Protocol):
    """Says something and counts itself."""

    def __init__(self, counter: Counter) -> None:
        self.counter = counter

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.counter.add()
        writing = cast("asyncio.WriteTransport", transport)
        writing.write(b"come in")
        writing.close()


@dataclass
class Two:
    """A turnstile of one process, and what another one counts."""

    turnstile: Turnstile
    here: Counter
    there: Counter
    address: tuple[str, int]

    async def enter(self) -> bytes:
        reader, writer = await asyncio.open_connection(*self.address)
        said = await reader.read()
        writer.close()
        return said


def trial(scenario: Callable[[Two], Awaitable[None]]) -> Callable[[], None]:
    async def play() -> None:
        memory = shared_memory(2)
        here, there = (Board(2, row, memory).counter("connections") for row in range(2))
        (sock,) = listen("127.0.0.1", 0)
        address = sock.getsockname()
        turnstile = Turnstile(sock, lambda: Greeting(here), None, None, here)
        try:
            await asyncio.wait_for(scenario(Two(turnstile, here, there, address)), 5)
        finally:
            turnstile.close()
        with pytest.raises(ConnectionError):
            await asyncio.open_connection(*address)
        os.close(memory)

    def run() -> None:
        uvloop.run(play())

    run.__name__ = scenario.__name__
    return run


@trial
async def test_all_are_let_in(two: Two) -> None:
    two.there.add(100)
    assert await asyncio.gather(*(two.enter() for _ in range(20))) == [b"come in"] * 20
    assert two.here.own == 20


@trial
async def test_who_has_more_than_its_share_lets_others_go_first_and_then_takes_them(two: Two) -> None:
    two.here.add(2 * SLACK + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ASIDE_S", 0.1)
        for _ in range(2):
            began = time.monotonic()
            assert await two.enter() == b"come in"
            assert 0.09 <= time.monotonic() - began < 1
        two.there.add(100)
        began = time.monotonic()
        assert await two.enter() == b"come in"
        assert time.monotonic() - began < 0.09


@trial
async def test_without_a_file_to_spare_it_tries_again(two: Two) -> None:
    class Full:
        """The socket of a process that may not have more files open."""

        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock
            self.refused = 0

        def fileno(self) -> int:
            return self.sock.fileno()

        def close(self) -> None:
            self.sock.close()

        def accept(self) -> tuple[socket.socket, object]:
            self.refused += 1
            if self.refused < 3:
                raise OSError(24, "Too many open files")
            return self.sock.accept()

    full = Full(two.turnstile._sock)
    two.turnstile._loop.remove_reader(two.turnstile._sock)
    two.turnstile._sock = full  # type: ignore[assignment]
    two.turnstile._open()
    assert await two.enter() == b"come in"
    assert full.refused >= 3
