"""How KV blocks travel between two instances: the decode side pulls over TCP.

    decode ──Pull(ticket, engine, digest)──▶ prefill
    decode ◀──Granted(tokens, seed, size) and `size` raw bytes, or Refused(reason)── prefill
    decode ──Received──▶ prefill, which gives the blocks back

    decode ──Keep(engine, tickets)──▶ prefill, now and then, while requests wait for room on the decode side

Messages are length-prefixed msgpack of the types below; nothing else is ever decoded. The prefill side checks every
pull: an unknown, used or expired ticket, a ticket of an earlier process, or a model that differs is refused by reason.

Not here yet: shared memory on one host, checksums, sending finished chunks while the next is computed.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Annotated, Final, Protocol, TypeVar

import msgspec
import torch
from torch import Tensor

from tandem.errors import TransferError

MAX_MESSAGE: Final = 16 * 1024 * 1024
"""Longest message in bytes, so that a stray client cannot ask for memory."""


M = TypeVar("M")


class Pull(msgspec.Struct, frozen=True, tag=True):
    """The decode side asks for the blocks of one ticket."""

    ticket: str
    engine_id: str
    """The process that the ticket names; a restarted one refuses."""
    digest: str
    """The puller's compatibility digest."""


class Keep(msgspec.Struct, frozen=True, tag=True):
    """Requests that wait on the decode side still want these tickets: their leases begin anew."""

    engine_id: str
    tickets: list[str]


class Granted(msgspec.Struct, frozen=True, tag=True):
    """The blocks follow; `token_ids` are the prompt and the first token sampled after it."""

    token_ids: list[Annotated[int, msgspec.Meta(ge=0)]]
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    """That the first token was drawn with, and the others shall be."""
    size: Annotated[int, msgspec.Meta(ge=0)]
    """Bytes that follow."""


class Refused(msgspec.Struct, frozen=True, tag=True):
    """No blocks follow."""

    reason: str


class Received(msgspec.Struct, frozen=True, tag=True):
    """Everything arrived; the blocks may go."""


class Holder(Protocol):
    """The side that has blocks, as the server needs it."""

    def grant(self, pull: Pull) -> tuple[Granted, Tensor]:
        """What the ticket stands for and a copy of its bytes (uint8, CPU). Called in a thread of its own.

        Raises:
            TransferError: The pull is refused; the message tells the other side why.
        """

    def settle(self, pull: Pull, granted: Granted, *, received: bool) -> None:
        """A granted pull ended: it arrived, or it broke off and may be tried again."""

    def keep(self, keep: Keep) -> None:
        """Renew leases that are waited for; those that are gone are passed over."""


class TransferServer:
    """Answers pulls.

    Args:
        holder: Decides and delivers.
        listener: Where pulls arrive; bound before the holder exists, because tickets name its port.
        timeout: Most seconds for one pull; a frozen puller must not hold blocks for ever.
    """

    def __init__(self, holder: Holder, listener: socket.socket, timeout: float) -> None:
        self._holder = holder
        self._listener = listener
        self._timeout = timeout
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Answer pulls from now on."""
        self._server = await asyncio.start_server(self._serve, sock=self._listener)

    async def stop(self) -> None:
        """Close the port; pulls under way go on until they end or the process does."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(TimeoutError, OSError, asyncio.IncompleteReadError, msgspec.DecodeError, TransferError):
                async with asyncio.timeout(self._timeout):
                    await self._answer(reader, writer)
                    writer.close()
                    await writer.wait_closed()
        finally:
            # What a peer that stopped reading has not taken is thrown away, not waited for.
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pull: Pull | Keep = await _read(reader.readexactly, Pull | Keep)  # type: ignore[arg-type]
        if isinstance(pull, Keep):
            self._holder.keep(pull)
            return
        try:
            granted, data = await self._grant(pull)
        except TransferError as error:
            writer.write(_frame(Refused(str(error))))
            await writer.drain()
            return
        received = False
        try:
            writer.write(_frame(granted))
            writer.write(data.numpy().data)
            await writer.drain()
            await _read(reader.readexactly, Received)
            received = True
        finally:
            self._holder.settle(pull, granted, received=received)

    async def _grant(self, pull: Pull) -> tuple[Granted, Tensor]:
        """Copy the bytes in a thread: a long prompt's would hold up every other request."""
        granting = asyncio.ensure_future(asyncio.to_thread(self._holder.grant, pull))
        try:
            return await asyncio.shield(granting)
        except asyncio.CancelledError:
            granting.add_done_callback(partial(self._abandon, pull))
            raise

    def _abandon(self, pull: Pull, granting: asyncio.Future[tuple[Granted, Tensor]]) -> None:
        if not granting.cancelled() and granting.exception() is None:
            self._holder.settle(pull, granting.result()[0], received=False)


async def pull_blocks(host: str, port: int, pull: Pull, size: int, timeout: float) -> tuple[Granted, Tensor]:  # noqa: ASYNC109
    """Fetch the blocks of one ticket: what was granted, and the bytes (uint8 [size], CPU).

    Args:
        host: Of the holder's transfer port.
        port: That port.
        pull: What to ask for.
        size: Bytes that the prompt's keys and values take; a holder that offers others is not believed.
        timeout: Most seconds.

    Raises:
        TransferError: The holder refused, could not be reached, broke off, took too long or offers something else.
    """
    try:
        async with asyncio.timeout(timeout):
            return await _pull(host, port, pull, size)
    except TimeoutError:
        raise TransferError(f"KV pull from {host}:{port} took over {timeout:g} s; is that instance frozen?") from None
    except (OSError, EOFError, UnicodeError, msgspec.DecodeError) as error:  # UnicodeError: no host name at all
        raise TransferError(f"KV pull from {host}:{port} broke off ({error or type(error).__name__})") from None


async def keep_leases(host: str, port: int, keep: Keep, timeout: float) -> None:  # noqa: ASYNC109
    """Tell a holder that its tickets are still wanted.

    Raises:
        TransferError: It could not be reached within `timeout` seconds.
    """
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(host, port)
            writer.write(_frame(keep))
            writer.close()
            await writer.wait_closed()
    except (OSError, UnicodeError) as error:
        raise TransferError(f"{host}:{port} cannot be told to keep KV leases ({error})") from None


async def _pull(host: str, port: int, pull: Pull, size: int) -> tuple[Granted, Tensor]:
    loop = asyncio.get_running_loop()
    (family, kind, proto, _, address), *_ = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    with socket.socket(family, kind, proto) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, address)
        await loop.sock_sendall(sock, _frame(pull))

        async def read(size: int) -> bytes:
            return (await _receive(sock, size)).numpy().tobytes()

        answer: Granted | Refused = await _read(read, Granted | Refused)  # type: ignore[arg-type]
        if isinstance(answer, Refused):
            raise TransferError(f"the prefill instance refused the KV pull: {answer.reason}")
        if answer.size != size:
            raise TransferError(f"the prefill instance offers {answer.size} KV bytes, this prompt has {size}")
        data = await _receive(sock, size)
        await loop.sock_sendall(sock, _frame(Received()))
        return answer, data


async def _receive(sock: socket.socket, size: int) -> Tensor:
    """Exactly `size` bytes, received straight into their tensor."""
    loop = asyncio.get_running_loop()
    data = torch.empty(size, dtype=torch.uint8)
    view = data.numpy().data
    while view:
        count = await loop.sock_recv_into(sock, view)
        if count == 0:
            raise EOFError("the connection was closed")
        view = view[count:]
    return data


def _frame(message: msgspec.Struct) -> bytes:
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(4, "big") + body


async def _read(read: Callable[[int], Awaitable[bytes]], kind: type[M]) -> M:
    size = int.from_bytes(await read(4), "big")
    if size > MAX_MESSAGE:
        raise TransferError(f"a transfer message of {size} bytes is over the limit of {MAX_MESSAGE}")
    return msgspec.msgpack.decode(await read(size), type=kind)
