"""What two instances say to each other about blocks, beside the blocks themselves.

    decode ──Pull──▶ prefill                       decode ──Keep──▶ prefill, now and then while a request waits
    decode ◀──Granted or Refused── prefill         decode ──Release──▶ prefill, when nobody will pull
    decode ◀──Ready and its blocks── prefill       (again and again, while the prefill goes on)
    decode ◀──Waiting── prefill                    (now and then, while the next block is not computed yet)
    decode ◀──Finished── prefill                   (and Waiting back, while what was announced is still being read)
    decode ──Received──▶ prefill
    decode ◀──Confirmed or Refused── prefill, which gives the blocks back

A frame is four bytes of length, big-endian, and msgpack of one type below; nothing else is ever decoded.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta

from tandem.errors import TransferError

MAX_MESSAGE: Final = 16 * 1024 * 1024
"""Longest message in bytes, so that a stray peer cannot ask for memory."""

MAX_REQUEST: Final = 64 * 1024
"""Longest message to a holder in bytes: it comes from anybody who finds the port."""

Count = Annotated[int, Meta(ge=0, lt=2**32)]

M = TypeVar("M")


class Pull(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """The decode side asks for the blocks of one ticket."""

    ticket: str
    engine_id: str
    """The process that the ticket names; a restarted one refuses."""
    digest: str
    """The puller's compatibility digest."""
    content: bytes
    """Key of the prompt the puller wants (`prefix.py`); a ticket over anything else is refused."""
    first: Count = 0
    """The first block wanted; those before are there already."""
    transports: list[str] = []
    """How the puller can take blocks, the best way first."""


class Keep(msgspec.Struct, frozen=True, tag=True):
    """Requests that wait on the decode side still want these tickets: their leases begin anew."""

    engine_id: str
    tickets: list[str]


class Release(msgspec.Struct, frozen=True, tag=True):
    """Nobody on the decode side will pull this ticket."""

    engine_id: str
    ticket: str


class Granted(msgspec.Struct, frozen=True, tag=True):
    """The blocks follow."""

    transport: str
    """One of the puller's."""
    ranks: Annotated[int, Meta(ge=1, le=4096)]
    """Tensor-parallel size of the holder."""
    count: Count
    """Blocks of the ticket in all, those before `first` too."""
    offer: bytes = b""
    """What the transport needs to know of the holder; every transport has its own."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The next blocks are computed; the holder keeps them until the connection ends."""

    blocks: list[Count]
    """Their ids on the holder."""


class Waiting(msgspec.Struct, frozen=True, tag=True):
    """Whoever says so is slow, not frozen: the next block is not computed yet, or the last ones are not read yet."""


class Finished(msgspec.Struct, frozen=True, tag=True):
    """All blocks were sent; `state` is what travels besides them, for the engine to read."""

    state: bytes


class Received(msgspec.Struct, frozen=True, tag=True):
    """Everything arrived; the blocks may go."""


class Confirmed(msgspec.Struct, frozen=True, tag=True):
    """The lease stood until now, so what arrived is what was computed."""


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The pull is over."""

    reason: str


def frame(message: msgspec.Struct) -> bytes:
    """A message as it goes on the wire."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(4, "big") + body


def body_size(head: bytes, limit: int = MAX_MESSAGE) -> int:
    """The length that a frame's first four bytes announce.

    Raises:
        TransferError: It is over the limit.
    """
    size = int.from_bytes(head, "big")
    if size > limit:
        raise TransferError(f"a transfer message of {size} bytes is over the limit of {limit}; is that a KV port?")
    return size


def decode(body: bytes, kind: type[M]) -> M:
    """A message of `kind`, which may be a union.

    Raises:
        TransferError: It is none.
    """
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise TransferError(f"a transfer message cannot be read ({error}); is that an instance's KV port?") from None
