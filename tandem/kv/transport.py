"""The ways blocks travel, behind one interface for each side.

The holder names one of those the puller can take; from then on each side talks to its half. The engine knows none of
them. `fake.py` is one more for tests, within one process; it breaks off when told to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch

from tandem.errors import UsageError
from tandem.kv import nixl, shared_memory
from tandem.kv.messages import Granted, Ready
from tandem.kv.shards import Shards
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


class Incoming(Protocol):
    """The puller's side of one pull."""

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


class Receiver(Protocol):
    """The puller's side, one for all pulls."""

    async def open(self, granted: Granted, files: Sequence[int]) -> Incoming:
        """Begin a pull, from what was granted and the descriptors that came with it, which stay the caller's.

        Raises:
            TransferError: What the holder offers cannot be taken.
        """

    def close(self) -> None:
        """Let go of what is kept between pulls; none is under way."""


@dataclass(frozen=True)
class Transport:
    """One way."""

    sender: Callable[[Shards], Sender]
    """May take seconds: called in a thread."""
    receiver: Callable[[Shards], Receiver]
    """Takes no time."""
    lack: Callable[[torch.device], str | None]
    """Why caches on a device cannot travel that way; None if they can."""
    local: bool = False
    """It passes descriptors, so it needs a connection within one host."""


TRANSPORTS: Final = {
    "shm": Transport(shared_memory.MemorySender, shared_memory.MemoryReceiver, shared_memory.lack, local=True),
    "nixl": Transport(nixl.NixlSender, nixl.NixlReceiver, nixl.lack),
    "tcp": Transport(TcpSender, TcpReceiver, lambda device: None),
}
"""By name, as `Pull.transports` has them."""

DEFAULT_TRANSPORTS: Final = ("shm", "tcp")
"""The best first. NIXL is asked for by name: it depends on devices and settings outside this program."""


def usable(names: Sequence[str], device: torch.device) -> list[str]:
    """Those of some transports by which caches on a device can travel.

    Raises:
        UsageError: There is none.
    """
    lacks = {name: TRANSPORTS[name].lack(device) for name in names}
    found = [name for name, lack in lacks.items() if lack is None]
    if not found:
        raise UsageError("; ".join(f"--kv-transport {name}: {lack}" for name, lack in lacks.items()))
    return found
