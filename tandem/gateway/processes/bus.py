"""What the processes of one gateway tell each other: messages through their supervisor, JSON in lines.

    process ── Told ──► supervisor ── Told ──► every process, the one that told it too

So all of them hear the same in the same order. The supervisor keeps the last message of each topic for processes that
start later.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from tandem.errors import TandemError, UsageError

LONGEST: Final = 16 * 2**20
"""Bytes of a line."""
BEAT_S: Final = 1.0
"""So often a process says that it lives."""

Handler = Callable[[bytes], None]

log = logging.getLogger(__name__)


class Told(msgspec.Struct, frozen=True, tag="told"):
    """A message on a topic."""

    topic: str
    body: bytes
    row: int
    """Which process told it."""


class Heard(msgspec.Struct, frozen=True, tag="heard"):
    """The supervisor's first line to a process: the last message of each topic."""

    messages: tuple[Told, ...]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """A process cannot go on, and nor could its successor: the gateway ends."""

    message: str
    is_usage: bool
    """Whether the user asked for something wrong."""


class Alive(msgspec.Struct, frozen=True, tag="alive"):
    """A process does not hang."""


Line = Told | Heard | Failed | Alive


class Bus:
    """One process's end.

    Args:
        row: Which process this one is.
        line: To the supervisor; None for the only process of a gateway, which tells itself.
    """

    def __init__(self, row: int = 0, line: socket.socket | None = None) -> None:
        self._row = row
        self._line = line
        self._handlers: dict[str, list[Handler]] = {}
        self._last: dict[str, bytes] = {}
        self._told: deque[asyncio.Future[None]] = deque()
        self._writer: asyncio.StreamWriter | None = None
        self._tasks: tuple[asyncio.Task[None], ...] = ()

    async def start(self) -> None:
        """Hear what was told before this process began, then whatever comes."""
        if self._line is None:
            return
        reader, self._writer = await asyncio.open_unix_connection(sock=self._line, limit=LONGEST)
        heard = decoded(await reader.readline())
        assert isinstance(heard, Heard), "a supervisor begins with what was told"
        for message in heard.messages:
            self._hear(message)
        self._tasks = (asyncio.create_task(self._listen(reader)), asyncio.create_task(self._beat(self._writer)))

    async def stop(self) -> None:
        """Hear no more."""
        if self._writer is not None and self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
            self._writer.close()

    def subscribe(self, topic: str, handler: Handler) -> None:
        """Call `handler` with every message on a topic; at once with the last one, if there was any."""
        self._handlers.setdefault(topic, []).append(handler)
        if topic in self._last:
            handler(self._last[topic])

    async def tell(self, topic: str, body: bytes) -> None:
        """Tell all processes; returns when this one has heard it, too.

        Raises:
            ConnectionError: The supervisor is gone; this process is about to end.
        """
        message = Told(topic, body, self._row)
        if self._writer is None:
            self._hear(message)
            return
        heard = asyncio.get_running_loop().create_future()
        self._told.append(heard)
        self._writer.write(encoded(message))
        await heard

    async def fail(self, error: TandemError) -> bool:
        """Tell the supervisor that there is no use in going on; False where there is none."""
        if self._writer is None:
            return False
        self._writer.write(encoded(Failed(str(error), isinstance(error, UsageError))))
        await self._writer.drain()
        return True

    async def _beat(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            writer.write(encoded(Alive()))

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while (line := await reader.readline()).endswith(b"\n"):  # what broke off is nobody's
                message = decoded(line)
                assert isinstance(message, Told)
                self._hear(message)
                if message.row == self._row and self._told and not (heard := self._told.popleft()).done():
                    heard.set_result(None)
        finally:
            for heard in self._told:
                if not heard.done():
                    heard.set_exception(ConnectionResetError("the gateway's supervisor is gone"))

    def _hear(self, message: Told) -> None:
        self._last[message.topic] = message.body
        for handler in tuple(self._handlers.get(message.topic, ())):
            try:
                handler(message.body)
            except Exception:  # one who cannot cope does not keep the others from hearing it
                log.exception("a message on %s could not be handled", message.topic)


def encoded(line: Line) -> bytes:
    """A line; bodies are in base64, so it has no other end than its own."""
    return msgspec.json.encode(line) + b"\n"


def decoded(line: bytes) -> Line:
    """What a line says."""
    said: Line = msgspec.json.decode(line, type=Line)
    return said
