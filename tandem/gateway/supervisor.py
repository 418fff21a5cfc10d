"""The parent of a gateway's processes: it listens, starts them, and starts another one for whoever dies or hangs.

    supervisor ── sockets, board, bus, lifeline ──► process 0 … process N-1, the same command as its own

Connections wait in the sockets, which the supervisor holds, and not in a process: what a process that is killed has not
accepted, the others do. It serves nothing itself and does next to nothing, so that there is nothing it could die of.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import Process
from collections.abc import Sequence
from contextlib import closing, suppress
from typing import Any, Final

from prometheus_client import multiprocess

from tandem.errors import ProcessError, UsageError
from tandem.gateway.observability.counts_folder import CountsFolder
from tandem.gateway.observability.metrics import METRICS_FOLDER
from tandem.gateway.processes.board import Board, shared_memory
from tandem.gateway.processes.bus import LONGEST, Failed, Heard, Line, Told, decoded, encoded
from tandem.gateway.processes.commons import Inheritance
from tandem.protocol.json_body import UNREADABLE
from tandem.protocol.lifeline import Lifeline
from tandem.protocol.stop_signals import on_stop, refuse_restart

SHORT_S: Final = 10.0
"""Who dies sooner after its start has lived a short life."""
LIVES: Final = 5
"""When the last so many lives of every process were short, there is no use in going on."""
PAUSE_S: Final = 0.2
"""Before a process is started again after its second short life; doubled with each further one."""
LONGEST_PAUSE_S: Final = 5.0
MISS_S: Final = 5.0
"""A process that says nothing for so long, although it should every second, ..."""
MISSES: Final = 3
"""... so many times in a row, hangs. Not all at once: after a pause of the whole machine, all have missed one."""
FIRST_MISSES: Final = 24
"""The same before its first word: it has much to import."""
STOP_S: Final = 10.0
"""For what a process does at its end beside its open requests."""

log = logging.getLogger(__name__)


class Supervisor:
    """Runs a gateway in several processes.

    Args:
        count: How many.
        sockets: They listen; the supervisor closes them at its end.
        grace_s: How long open requests may still take after a stop was asked for.
        command: What each process runs; this process's own command line without one.
    """

    def __init__(
        self, count: int, sockets: Sequence[socket.socket], grace_s: float, command: Sequence[str] = ()
    ) -> None:
        self._sockets = sockets
        self._grace_s = grace_s
        self._command = command or (sys.executable, *sys.orig_argv[1:])
        self._memory = shared_memory(count)
        self._board = Board(count, descriptor=self._memory)
        self._processes: dict[int, Process] = {}
        self._lines: dict[int, asyncio.StreamWriter] = {}
        self._last: dict[str, Told] = {}
        self._short_lives = [0] * count
        self._has_spoken = False
        self._folder: CountsFolder
        self._asked = asyncio.Event()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Serve until SIGTERM, SIGINT or SIGHUP.

        Raises:
            UsageError: A process has found that it cannot serve what it was asked for.
            ProcessError: The same, for another reason; or all die again and again.
        """
        on_stop(self._asked.set)
        refuse_restart()
        with closing(CountsFolder()) as self._folder:
            keepers = [asyncio.create_task(self._keep(row)) for row in range(len(self._short_lives))]
            stop = asyncio.create_task(self._asked.wait())
            ends: set[asyncio.Future[Any]] = {stop, self._failed, *keepers}
            try:
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await self._stop(keepers)
                stop.cancel()
        for end in (self._failed, *keepers):
            if end.done():
                end.result()

    async def _stop(self, keepers: Sequence[asyncio.Task[None]]) -> None:
        """Take no more connections, let the processes end their requests, and end what does not end."""
        self._asked.set()
        for sock in self._sockets:
            sock.close()
        for number, wait_s in ((signal.SIGTERM, 2 * self._grace_s + STOP_S), (signal.SIGKILL, STOP_S)):
            for process in self._processes.values():
                _signal(process, number)
            if not (await asyncio.wait(keepers, timeout=wait_s))[1]:
                return

    async def _keep(self, row: int) -> None:
        """Start a process, and another one when it has ended, until a stop is asked for."""
        while not self._asked.is_set():
            began = time.monotonic()
            how = await self._live(row)
            if self._asked.is_set():
                return
            lived = time.monotonic() - began
            self._short_lives[row] = self._short_lives[row] + 1 if lived < SHORT_S else 0
            log.error("gateway: process %d %s after %.1f s and is started again", row, how, lived)
            if all(short >= LIVES for short in self._short_lives):
                raise ProcessError(f"gateway: its processes end again and again, the last one {how}; see its log")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), self._pause_s(row))

    def _pause_s(self, row: int) -> float:
        short = self._short_lives[row]
        return min(PAUSE_S * 2 ** (short - 2), LONGEST_PAUSE_S) if short > 1 else 0.0

    async def _live(self, row: int) -> str:
        """One process from its start to its end; says how it ended."""
        line, inherited = socket.socketpair()
        lifeline = Lifeline()
        with line, closing(lifeline):
            with inherited:
                process = self._processes[row] = await self._started(row, inherited, lifeline)
            if self._asked.is_set():  # it was not there yet when the others were told
                _signal(process, signal.SIGTERM)
            if why := await self._hear(row, line):
                log.error("gateway: process %d %s, and is killed", row, why)
                _signal(process, signal.SIGKILL)
            status = await process.wait()
        del self._processes[row]
        self._board.clear(row)
        multiprocess.mark_process_dead(row, self._folder.path)  # type: ignore[no-untyped-call]
        return f"was killed by signal {-status}" if status < 0 else f"ended with exit code {status}"

    async def _started(self, row: int, line: socket.socket, lifeline: Lifeline) -> Process:
        inheritance = Inheritance(
            row=row,
            rows=len(self._short_lives),
            sockets=tuple(sock.fileno() for sock in self._sockets),
            board=self._memory,
            line=line.fileno(),
            speaks=row == 0 and not self._has_spoken,
        )
        self._has_spoken |= inheritance.speaks
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            env=os.environ | inheritance.environment | lifeline.environment | {METRICS_FOLDER: self._folder.path},
            pass_fds=(*inheritance.descriptors, lifeline.descriptor, self._folder.descriptor),
        )
        lifeline.handed_over()
        return process

    async def _hear(self, row: int, line: socket.socket) -> str:
        """Pass on what a process tells, until it says no more; returns why it has to be killed, if it has."""
        reader, writer = await asyncio.open_unix_connection(sock=line, limit=LONGEST)
        writer.write(encoded(Heard(tuple(self._last.values()))))
        self._lines[row] = writer
        try:
            with suppress(ConnectionError):
                misses = FIRST_MISSES
                while (said := await _next_line(reader, misses)).endswith(b"\n"):  # what broke off is nobody's
                    self._take(row, said)
                    misses = MISSES
        except TimeoutError:
            return "hangs: it has not said that it lives for a while"
        except ValueError:
            return f"has told more than {LONGEST} bytes in one line"
        else:
            return ""
        finally:
            del self._lines[row]
            writer.close()

    def _take(self, row: int, line: bytes) -> None:
        try:
            self._pass_on(decoded(line))
        except UNREADABLE:
            log.exception("gateway: process %d has told what cannot be read; it is dropped", row)

    def _pass_on(self, said: Line) -> None:
        if isinstance(said, Told):
            self._last[said.topic] = said
            for writer in self._lines.values():
                writer.write(encoded(said))
        elif isinstance(said, Failed) and not self._failed.done():
            self._failed.set_exception((UsageError if said.is_usage else ProcessError)(said.message))


def _signal(process: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        process.send_signal(number)


async def _next_line(reader: asyncio.StreamReader, misses: int) -> bytes:
    """The next line; empty, or a part of one, where no more comes.

    Raises:
        TimeoutError: It has not come for so many times `MISS_S`.
        ValueError: It is longer than any.
    """
    for _ in range(misses):
        with suppress(TimeoutError):
            return await asyncio.wait_for(reader.readline(), MISS_S)
    raise TimeoutError


def supervise(count: int, sockets: Sequence[socket.socket], grace_s: float) -> None:
    """Run a gateway in so many processes until it is told to stop.

    Raises:
        UsageError: A process has found that it cannot serve what it was asked for.
        ProcessError: The same, for another reason; or all die again and again.
    """

    async def run() -> None:
        await Supervisor(count, sockets, grace_s).run()

    asyncio.run(run())
