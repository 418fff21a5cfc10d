"""The ways blocks travel, behind one interface for each side.

The holder names one of those the puller can take; from then on each side talks to its half. The engine knows none of
them. `fake.py` has the other end of both sides for tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from tandem.errors import UsageError
from tandem.kv import nixl
from tandem.kv.messages import Granted, Ready
from tandem.kv.shards import Shards
from tandem.kv.shared_memory import MemoryReceiver, MemorySender, shareable
from tandem.kv.tcp import TcpReceiver, TcpSender
from tandem.kv.wire import Wire


class Sender(Protocol):
    """The holder's side, one for all pulls."""

    @property
    def offer(self) -> bytes:
        """What the puller's side needs to know."""

    @property
    def files(self) -> Sequence[int]:
        """Descriptors that go with the offer; the sender keeps them."""

    async def send(self, wire: Wire, blocks: Sequence[int]) -> None:
        """Tell the puller of computed blocks with `Ready`, and send what belongs to it.

        The blocks stay as they are until the connection ends.

        Raises:
            OSError: The puller is gone.
            TimeoutError: It took nothing for too long.
        """


class Receiver(Protocol):
    """The puller's side, for one pull."""

    async def receive(self, wire: Wire, ready: Ready, blocks: Sequence[int]) -> None:
        """Bring the blocks of a Ready into `blocks`, as many.

        However it ends, nothing writes there afterwards.

        Raises:
            TransferError: What came is not what was announced.
            OSError: The holder is gone.
            TimeoutError: It was silent too long.
        """

    def close(self, *, whole: bool) -> None:
        """The pull is over, and went well or not."""


@dataclass(frozen=True)
class Transport:
    """One way."""

    sender: Callable[[Shards], Sender]
    """May take seconds: called in a thread."""
    receiver: Callable[[Shards, Granted, Sequence[int]], Awaitable[Receiver]]
    """From what was granted and the descriptors that came with it, which stay the caller's."""
    fits: Callable[[Shards], bool]
    """Whether caches can be read and written that way."""
    local: bool = False
    """It passes descriptors, so it needs a connection within one host."""


async def _tcp(shards: Shards, granted: Granted, files: Sequence[int]) -> Receiver:
    return TcpReceiver(shards, granted)


async def _memory(shards: Shards, granted: Granted, files: Sequence[int]) -> Receiver:
    return MemoryReceiver(shards, granted, files)


async def _nixl(shards: Shards, granted: Granted, files: Sequence[int]) -> Receiver:
    return await asyncio.to_thread(nixl.NixlReceiver, shards, granted)


TRANSPORTS: Final = {
    "shm": Transport(sender=MemorySender, receiver=_memory, fits=shareable, local=True),
    "nixl": Transport(sender=nixl.NixlSender, receiver=_nixl, fits=nixl.fits),
    "tcp": Transport(sender=TcpSender, receiver=_tcp, fits=lambda shards: True),
}
"""By name, as `Pull.transports` has them."""

DEFAULT_TRANSPORTS: Final = ("shm", "tcp")
"""The best first. NIXL is asked for by name: it depends on devices and settings outside this program."""


def check_transports(names: Sequence[str]) -> None:
    """Refuse what cannot work.

    Raises:
        UsageError: A name is unknown, or its package is not installed.
    """
    for name in names:
        if name not in TRANSPORTS:
            raise UsageError(f"KV transport {name!r}: there is none; choose from {', '.join(TRANSPORTS)}")
        if name == "nixl" and not nixl.installed():
            raise UsageError("KV transport nixl: its package is missing; run `pip install 'tandem[nixl]'`")
