"""One connection between two instances: frames, raw bytes and descriptors, each with a limit on silence.

Sockets are used as they are, not through streams: bytes go from and to the caches' own memory without a copy between.
Messages are read and written on the event loop, bytes by a thread that waits for nothing but its own socket; so many
bytes neither hold up the loop nor wait for it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar

import msgspec

from tandem.kv.messages import MAX_MESSAGE, body_size, decode, frame
from tandem.kv.threads import Threads

M = TypeVar("M")

STEP: Final = 256 * 1024
"""Most bytes between two calls of `seen`: what it looks at is in the processor's cache."""

WINDOW: Final = 4 * 1024 * 1024
"""Bytes that may be under way from the beginning."""

MAX_FILES: Final = 253
"""Descriptors in one message: the kernel's limit."""

CLOSED: Final = "the connection was closed"
"""What the system has no error for."""

Seen = Callable[[memoryview], object]


class Wire:
    """One connection.

    Every method raises `TimeoutError` when the other side was silent too long and `OSError` when it is gone. A message
    has to come, or to be taken, within that time as a whole, not each of its bytes.

    Args:
        sock: Connected; closed by whoever made it.
        timeout: Longest silence, in seconds.
        threads: Where many bytes are sent and received.
    """

    def __init__(self, sock: socket.socket, timeout: float, threads: Threads) -> None:
        if sock.family != socket.AF_UNIX:
            tune(sock)
        self.local = sock.family == socket.AF_UNIX
        """Both ends are on this host, and descriptors can be passed."""
        self.timeout = timeout
        self._sock = sock
        self._threads = threads
        self._loop = asyncio.get_running_loop()

    async def send(self, message: msgspec.Struct, files: Sequence[int] = ()) -> None:
        """Send a message, and with it, on a local connection, duplicates of descriptors."""
        data = frame(message)
        if files:
            data = data[socket.send_fds(self._sock, [data], files, socket.MSG_DONTWAIT) :]
        await self.send_bytes(data)

    async def send_bytes(self, data: bytes) -> None:
        """Send a few bytes as they are."""
        view = memoryview(data)
        async with asyncio.timeout(self.timeout):
            while view:
                try:
                    view = view[self._sock.send(view, socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    await self._until(self._loop.add_writer, self._loop.remove_writer)

    async def receive(self, kind: type[M], limit: int = MAX_MESSAGE) -> M:
        """The next message.

        Args:
            kind: What it must be; may be a union.
            limit: Most bytes.

        Raises:
            TransferError: It is something else.
        """
        async with asyncio.timeout(self.timeout):
            return decode(await self._next(body_size(await self._next(4), limit)), kind)

    async def receive_with_files(self, kind: type[M]) -> tuple[M, list[int]]:
        """The next message and the descriptors that came with it, which are the caller's to close.

        Raises:
            TransferError: The message is something else.
        """
        if not self.local:
            return await self.receive(kind), []
        async with asyncio.timeout(self.timeout):
            await self._until(self._loop.add_reader, self._loop.remove_reader)
            flags = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
            head, files, _, _ = socket.recv_fds(self._sock, 4, MAX_FILES, flags)
            try:
                head += await self._next(4 - len(head))
                return decode(await self._next(body_size(head)), kind), files
            except BaseException:
                close_all(files)
                raise

    async def receive_bytes(self, size: int) -> bytes:
        """The next few bytes."""
        async with asyncio.timeout(self.timeout):
            return await self._next(size)

    async def send_all(self, views: Iterable[memoryview], seen: Seen) -> None:
        """Send many bytes as they are; `seen` is called with each step of them. Both happen in a thread."""
        await self._aside(socket.SO_SNDTIMEO, partial(_send_all, self._sock, views, seen))

    async def receive_all(self, views: Iterable[memoryview], seen: Seen) -> None:
        """Fill views with the next bytes; `seen` is called with each step of them. Both happen in a thread.

        However it ends, nothing writes there afterwards.
        """
        await self._aside(socket.SO_RCVTIMEO, partial(_receive_all, self._sock, views, seen))

    async def _aside(self, limit: int, act: Callable[[], None]) -> None:
        """Run in a thread, and wait for its end even if cancelled: the connection is cut then, which ends it."""
        seconds, rest = divmod(self.timeout, 1)
        self._sock.setsockopt(socket.SOL_SOCKET, limit, struct.pack("ll", int(seconds), max(1, int(rest * 1e6))))
        # The thread's calls wait in the kernel. The loop's do not (MSG_DONTWAIT), but uvloop's make the socket so.
        self._sock.setblocking(True)
        try:
            await self._threads.run(act, interrupt=self._cut)
        except BlockingIOError:  # the kernel's word for a limit that has passed
            raise TimeoutError from None

    def _cut(self) -> None:
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    async def _next(self, size: int) -> bytes:
        """The next bytes; memory is taken as they come, not as they are announced."""
        await asyncio.sleep(0)  # whoever sends without a pause does not have the loop to itself
        data = bytearray()
        while len(data) < size:
            try:
                piece = self._sock.recv(min(size - len(data), STEP), socket.MSG_DONTWAIT)
            except BlockingIOError:
                await self._until(self._loop.add_reader, self._loop.remove_reader)
                continue
            if not piece:
                raise ConnectionResetError(CLOSED)
            data += piece
        return bytes(data)

    async def _until(self, add: Callable[..., object], remove: Callable[..., object]) -> None:
        """Wait until the socket can be read or written."""
        ready = self._loop.create_future()
        add(self._sock, lambda: None if ready.done() else ready.set_result(None))
        try:
            await ready
        finally:
            remove(self._sock)


def tune(sock: socket.socket) -> None:
    """Make a TCP connection ready for few and large messages."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Asking for a low-water mark makes Linux grow the receive buffer; unlike SO_RCVBUF, it may grow on by itself later.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, WINDOW)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


def close_all(files: Sequence[int]) -> None:
    """Close descriptors."""
    for file in files:
        with suppress(OSError):
            os.close(file)


def _send_all(sock: socket.socket, views: Iterable[memoryview], seen: Seen) -> None:
    for view in views:
        for start in range(0, len(view), STEP):
            step = view[start : start + STEP]
            seen(step)
            sock.sendall(step)


def _receive_all(sock: socket.socket, views: Iterable[memoryview], seen: Seen) -> None:
    for view in views:
        start = 0
        while start < len(view):
            count = sock.recv_into(view[start : start + STEP])
            if not count:
                raise ConnectionResetError(CLOSED)
            seen(view[start : start + count])
            start += count
