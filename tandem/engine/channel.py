"""Messages between the ranks of an instance, over one end of a socket pair: four bytes of length, then msgpack."""

from __future__ import annotations

import socket
from typing import TypeVar

import msgspec

T = TypeVar("T")

LENGTH_BYTES = 4


class Channel:
    """One end.

    Args:
        end: Taken over.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._incoming = end.makefile("rb")

    def send(self, message: object) -> None:
        """Send a dataclass or a msgspec struct.

        Raises:
            OSError: The other end is gone.
        """
        body = msgspec.msgpack.encode(message)
        self._socket.sendall(len(body).to_bytes(LENGTH_BYTES, "big") + body)

    def receive(self, kind: type[T]) -> T | None:
        """Wait for the next message, which is of this kind; None when the other end is gone."""
        try:
            size = int.from_bytes(self._incoming.read(LENGTH_BYTES), "big")
            body = self._incoming.read(size)
        except OSError:  # it died with unread messages
            return None
        return msgspec.msgpack.decode(body, type=kind) if body and len(body) == size else None

    def close(self) -> None:
        """Let go of this end."""
        self._incoming.close()
        self._socket.close()
