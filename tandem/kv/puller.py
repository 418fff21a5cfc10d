"""The decode side's end of a hand-off: fetches blocks, and says which tickets are still wanted."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from tandem.errors import TransferError
from tandem.kv import local_socket
from tandem.kv.messages import (
    MAX_REQUEST,
    Confirmed,
    Finished,
    Granted,
    Keep,
    Pull,
    Ready,
    Received,
    Refused,
    Release,
    Waiting,
    frame,
)
from tandem.kv.shards import Shards
from tandem.kv.threads import Threads
from tandem.kv.transport import TRANSPORTS, Incoming, usable
from tandem.kv.wire import Wire, close_all

CONNECT: Final = 5.0
"""Most seconds until a connection stands."""

MOST_PULLS: Final = 1024
"""So many receive bytes at once; others wait for their turn."""


@dataclass(frozen=True)
class Peer:
    """A holder, as a ticket names it."""

    host: str
    port: int
    engine_id: str

    def __str__(self) -> str:
        """Its address."""
        return f"{self.host}:{self.port}"


class Puller:
    """One instance's end of all its pulls.

    Args:
        shards: This instance's caches.
        transports: Ways that are allowed, the best first.
        timeout: Longest silence of a holder, in seconds; a whole pull may take as long as the prefill.

    Raises:
        UsageError: These caches can travel by none of the transports.
    """

    def __init__(self, shards: Shards, transports: Sequence[str], timeout: float) -> None:
        names = usable(transports, shards.caches[0].device)
        self._timeout = timeout
        self._threads = Threads(MOST_PULLS, "kv-pull")
        self._receivers = {name: TRANSPORTS[name].receiver(shards) for name in names}

    def close(self) -> None:
        """Let go of threads and of others' memory; no pull may be under way."""
        for receiver in self._receivers.values():
            receiver.close()
        self._threads.close()

    async def pull(self, peer: Peer, pull: Pull, blocks: Sequence[int]) -> bytes:
        """Fetch the blocks of one ticket.

        However this ends, by cancellation too, nothing writes into `blocks` afterwards; if it raises, what they contain
        is undefined.

        Args:
            peer: Who has them.
            pull: What to ask for; `transports` is filled in here.
            blocks: Where the ticket's blocks belong, from `pull.first` on.

        Returns:
            What travels besides the blocks.

        Raises:
            TransferError: The holder refused, could not be reached, broke off, was silent, or sent something else.
        """
        local = any(TRANSPORTS[name].local for name in self._receivers)
        async with _failures(peer, self._timeout), self._connected(peer, self._timeout, local=local) as wire:
            names = [name for name in self._receivers if wire.local or not TRANSPORTS[name].local]
            if not names:
                raise TransferError(
                    f"{', '.join(self._receivers)} works within one host, and that instance is not to be found on this "
                    "one; start the decode instance with --kv-transport auto or tcp"
                )
            await wire.send(msgspec.structs.replace(pull, transports=names))
            incoming = await self._granted(wire, names, pull.first + len(blocks))
            whole = False
            try:
                state = await _take(wire, incoming, blocks)
                whole = True
            finally:
                incoming.close(whole=whole)
            return state

    async def keep(self, peer: Peer, keep: Keep, timeout: float) -> None:  # noqa: ASYNC109
        """Tell a holder that its tickets are still wanted.

        Raises:
            TransferError: It could not be told within `timeout` seconds.
        """
        await asyncio.gather(*(self._tell(peer, part, timeout) for part in _parts(keep)))

    async def release(self, peer: Peer, release: Release, timeout: float) -> None:  # noqa: ASYNC109
        """Tell a holder that nobody will pull a ticket.

        Raises:
            TransferError: It could not be told within `timeout` seconds.
        """
        await self._tell(peer, release, timeout)

    async def _tell(self, peer: Peer, message: Keep | Release, timeout: float) -> None:  # noqa: ASYNC109
        async with (
            _failures(peer, timeout),
            asyncio.timeout(timeout),
            self._connected(peer, timeout, local=False) as wire,
        ):
            await wire.send(message)

    @asynccontextmanager
    async def _connected(self, peer: Peer, timeout: float, *, local: bool) -> AsyncIterator[Wire]:  # noqa: ASYNC109
        sock = (local_socket.connect(peer.engine_id) if local else None) or await _tcp(peer, min(timeout, CONNECT))
        with closing(sock):
            yield Wire(sock, timeout, self._threads)

    async def _granted(self, wire: Wire, names: Sequence[str], count: int) -> Incoming:
        """What the holder grants.

        Raises:
            TransferError: Nothing, or something else than was asked for.
        """
        answer: Granted | Refused
        answer, files = await wire.receive_with_files(Granted | Refused)  # type: ignore[arg-type]
        try:
            if isinstance(answer, Refused):
                raise TransferError(f"refused: {answer.reason}")
            if answer.transport not in names:
                raise TransferError(f"it wants to send by {answer.transport!r}, which was not offered")
            if answer.count != count:
                raise TransferError(f"it has {answer.count} blocks, this prompt has {count}")
            return await self._receivers[answer.transport].open(answer, files)
        finally:
            close_all(files)


def _parts(keep: Keep) -> Iterator[Keep]:
    """The same, in messages that a holder takes."""
    half = len(keep.tickets) // 2
    if not half or len(frame(keep)) <= MAX_REQUEST:
        yield keep
        return
    yield from _parts(Keep(keep.engine_id, keep.tickets[:half]))
    yield from _parts(Keep(keep.engine_id, keep.tickets[half:]))


@asynccontextmanager
async def _failures(peer: Peer, timeout: float) -> AsyncIterator[None]:  # noqa: ASYNC109
    """What can go wrong, in the words of whoever reads the log."""
    try:
        yield
    except TransferError as error:
        raise TransferError(f"KV hand-off from {peer}: {error}") from None
    except TimeoutError:
        raise TransferError(f"KV hand-off from {peer}: silent for {timeout:g} s; is that instance frozen?") from None
    except OSError as error:
        raise TransferError(f"KV hand-off from {peer} broke off ({error})") from None


async def _tcp(peer: Peer, timeout: float) -> socket.socket:  # noqa: ASYNC109
    """A connection to the first of a host's addresses that answers."""
    loop = asyncio.get_running_loop()
    failure: Exception = OSError("it has no address")
    try:
        async with asyncio.timeout(timeout):
            found = await loop.getaddrinfo(peer.host, peer.port, type=socket.SOCK_STREAM)
            for family, kind, proto, _, address in found:
                try:
                    return await _reached(socket.socket(family, kind, proto), address)
                except OSError as error:
                    failure = error
    except TimeoutError:
        raise TransferError(f"not reachable within {timeout:g} s; is that host there?") from None
    except (OSError, ValueError) as error:  # ValueError: no host name at all
        failure = error
    raise TransferError(f"not reachable ({failure})")


async def _reached(sock: socket.socket, address: Any) -> socket.socket:
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


async def _take(wire: Wire, incoming: Incoming, blocks: Sequence[int]) -> bytes:
    """All blocks and the state."""
    done = 0
    while not isinstance(message := await _next(wire), Finished):
        if isinstance(message, Confirmed):
            raise TransferError("it confirms what it has not sent")
        if isinstance(message, Ready):
            room = blocks[done : done + len(message.blocks)]
            if not 0 < len(message.blocks) == len(room):
                raise TransferError(f"it sends {len(message.blocks)} blocks after {done} of {len(blocks)}")
            await incoming.receive(wire, message, room)
            done += len(room)
    if done != len(blocks):
        raise TransferError(f"it ended after {done} of {len(blocks)} blocks")
    await wire.send(Received())
    if isinstance(await _next(wire), Confirmed):
        return message.state
    raise TransferError("it did not confirm what it sent")


async def _next(wire: Wire) -> Ready | Waiting | Finished | Confirmed:
    message: Ready | Waiting | Finished | Confirmed | Refused
    message = await wire.receive(Ready | Waiting | Finished | Confirmed | Refused)  # type: ignore[arg-type]
    if isinstance(message, Refused):
        raise TransferError(f"refused: {message.reason}")
    return message
