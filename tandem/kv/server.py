"""The holder's end of a hand-off: answers pulls over TCP and, to processes of the same host, over a local socket.

    accept ──▶ Pull ──open──▶ Granted ──▶ next ──▶ Ready ... ──▶ Finished ──▶ Received ──confirm──▶ Confirmed
                 └─ Keep, Release: told to the holder, no answer

Each connection is a task of its own. It ends when the other side is silent for the timeout; and whatever that side says
or leaves undone, soon after its ticket has ended (used, released, expired). While it has not said what it wants, it may
be cut off to make room for newer ones.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Final, Protocol

from tandem.errors import TransferError
from tandem.kv import local_socket
from tandem.kv.messages import (
    MAX_REQUEST,
    Confirmed,
    Finished,
    Granted,
    Keep,
    Pull,
    Received,
    Refused,
    Release,
    Waiting,
)
from tandem.kv.shards import Shards
from tandem.kv.threads import Threads
from tandem.kv.transport import DEFAULT_TRANSPORTS, TRANSPORTS, Sender, usable
from tandem.kv.wire import Wire

MOST_PULLS: Final = 1024
"""So many are served at once; each may need a thread, and they are made as they are needed."""

MOST_STRANGERS: Final = 128
"""Connections that have not said yet what they want."""

FIRST_MESSAGE: Final = 5.0
"""Most seconds until a new connection has said what it wants."""

WAITING: Final = 2.0
"""Most seconds between two signs of life while a prefill goes on."""

CHECK: Final = 1.0
"""Seconds between two looks at whether a pull's ticket is still good."""

PAUSE: Final = 0.1
"""Seconds without accepting after this process ran out of descriptors."""


class Outgoing(Protocol):
    """One pull, on the holder's side."""

    @property
    def count(self) -> int:
        """Blocks of the ticket in all."""

    async def next(self) -> list[int]:
        """Ids of the blocks computed since the last call, at least one, from `pull.first` on; [] once all were named.

        They are held until `close`. A call that is cancelled has named none.

        Raises:
            TransferError: The prefill ended otherwise, or the lease is over.
        """

    def check(self) -> None:
        """Look whether the ticket is still good.

        Raises:
            TransferError: The prefill ended otherwise, or the lease is over.
        """

    @property
    def state(self) -> bytes:
        """What travels besides the blocks; there once `next` has given []."""

    def confirm(self) -> bool:
        """Everything arrived, so the lease ends; False if it had ended before."""

    def close(self) -> None:
        """The pull is over, however it ended; may be called again."""


class Holder(Protocol):
    """Who has blocks, as the server needs it; the engine is one."""

    @property
    def shards(self) -> Shards:
        """Where the blocks lie."""

    @property
    def engine_id(self) -> str:
        """This process, as tickets name it."""

    def open(self, pull: Pull) -> Outgoing:
        """Begin a pull; costs nothing until `Outgoing.next`.

        Raises:
            TransferError: The pull is refused; the message tells the other side why.
        """

    def keep(self, keep: Keep) -> None:
        """Renew leases that are waited for; those that are gone are passed over."""

    def release(self, release: Release) -> None:
        """End a lease that nobody will use; one that is gone is passed over."""


class TransferServer:
    """Answers pulls.

    Args:
        holder: Decides and has the blocks.
        listener: Where pulls arrive; bound before the holder exists, because tickets name its port.
        timeout: Longest silence of a puller, in seconds.
        transports: Ways that are allowed.

    Raises:
        UsageError: The holder's caches can travel by none of the transports.
    """

    def __init__(
        self,
        holder: Holder,
        listener: socket.socket,
        timeout: float,
        transports: Sequence[str] = DEFAULT_TRANSPORTS,
    ) -> None:
        self._holder = holder
        self._listeners = [listener]
        self._timeout = timeout
        self._names = usable(transports, holder.shards.caches[0].device)
        self._threads = Threads(MOST_PULLS, "kv-serve")
        self._senders: dict[str, Sender] = {}
        self._accepting: list[asyncio.Task[None]] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._strangers: dict[socket.socket, asyncio.Task[None]] = {}
        """Those of them that have not said yet what they want, the oldest first."""

    async def start(self) -> None:
        """Answer pulls from now on; the holder's ranks have mapped their memory by now (`shared_memory.py`)."""
        for name in self._names:
            self._senders[name] = await asyncio.to_thread(TRANSPORTS[name].sender, self._holder.shards)
        local = local_socket.listen(self._holder.engine_id)
        if local is not None:
            self._listeners.append(local)
        for listener in self._listeners:
            listener.setblocking(False)
            listener.listen(socket.SOMAXCONN)
            self._accepting.append(asyncio.create_task(self._accept(listener)))

    async def stop(self) -> None:
        """Close the port and cut off the pulls under way."""
        tasks = [*self._accepting, *self._connections]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for listener in self._listeners:
            listener.close()
        self._threads.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError:
                await asyncio.sleep(PAUSE)
                continue
            if len(self._strangers) >= MOST_STRANGERS:  # whoever means well has spoken long ago
                self._strangers.pop(next(iter(self._strangers))).cancel()
            connection = self._strangers[sock] = asyncio.create_task(self._serve(sock))
            self._connections.add(connection)
            connection.add_done_callback(partial(self._ended, sock))

    def _ended(self, sock: socket.socket, connection: asyncio.Task[None]) -> None:
        sock.close()
        self._connections.discard(connection)
        self._strangers.pop(sock, None)

    async def _serve(self, sock: socket.socket) -> None:
        with suppress(TimeoutError, OSError, TransferError):
            wire = Wire(sock, min(self._timeout, FIRST_MESSAGE), self._threads)
            if wire.local and not local_socket.same_user(sock):
                return
            request: Pull | Keep | Release = await wire.receive(Pull | Keep | Release, MAX_REQUEST)  # type: ignore[arg-type]
            wire.timeout = self._timeout
            self._strangers.pop(sock, None)
            match request:
                case Keep():
                    self._holder.keep(request)
                case Release():
                    self._holder.release(request)
                case Pull():
                    await self._answer(wire, request)

    async def _answer(self, wire: Wire, pull: Pull) -> None:
        answer: Confirmed | Refused = Refused("the lease ended before everything had arrived")
        try:
            name = self._choose(wire, pull)
            with closing(self._holder.open(pull)) as outgoing:
                await self._send_while_good(wire, name, outgoing)
                if outgoing.confirm():
                    answer = Confirmed()
        except TransferError as error:
            answer = Refused(str(error))
        await wire.send(answer)

    def _choose(self, wire: Wire, pull: Pull) -> str:
        if len(self._connections) - len(self._strangers) > MOST_PULLS:
            raise TransferError(f"{MOST_PULLS} pulls are under way already; try again")
        for name in pull.transports:
            if name in self._senders and (wire.local or not TRANSPORTS[name].local):
                return name
        raise TransferError(
            f"no common transport: it has {self._names}, the decode instance takes {pull.transports}; "
            "give both the same --kv-transport"
        )

    async def _send_while_good(self, wire: Wire, name: str, outgoing: Outgoing) -> None:
        """Send everything and hear that it arrived; breaks off when the ticket ends.

        Raises:
            TransferError: It has ended.
        """
        sending = asyncio.ensure_future(self._send(wire, name, outgoing))
        try:
            while not (await asyncio.wait([sending], timeout=CHECK))[0]:
                outgoing.check()
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        sending.result()

    async def _send(self, wire: Wire, name: str, outgoing: Outgoing) -> None:
        sender = self._senders[name]
        granted = Granted(name, len(self._holder.shards.caches), outgoing.count, sender.offer)
        await wire.send(granted, sender.files)
        while blocks := await self._next(wire, outgoing):
            await sender.send(wire, blocks)
        await wire.send(Finished(outgoing.state))
        while isinstance(await wire.receive(Received | Waiting, MAX_REQUEST), Waiting):  # type: ignore[arg-type]
            pass

    async def _next(self, wire: Wire, outgoing: Outgoing) -> list[int]:
        """The next computed blocks; until there are some, the puller is told that somebody is alive."""
        while True:
            try:
                async with asyncio.timeout(min(WAITING, self._timeout / 4)):
                    return await outgoing.next()
            except TimeoutError:
                await wire.send(Waiting())
