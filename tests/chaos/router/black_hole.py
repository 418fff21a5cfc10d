"""An address where connecting neither works nor fails: a listening socket whose backlog is full."""

from __future__ import annotations

import select
import socket

FULL_S = 0.2
"""A connection that is not there after so long waits for room."""


class BlackHole:
    """Takes the place of a process that is gone; Linux drops the first packet of whoever comes."""

    def __init__(self, port: int) -> None:
        self._listening = socket.socket()
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listening.bind(("127.0.0.1", port))
        self._listening.listen(0)
        self._filling: list[socket.socket] = []
        while not self._full():
            pass

    def _full(self) -> bool:
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(self._listening.getsockname())
        self._filling.append(one)
        poll = select.poll()  # `select` takes no descriptor over 1024
        poll.register(one, select.POLLOUT)
        return not poll.poll(FULL_S * 1000)

    def close(self) -> None:
        """The address is nobody's again."""
        for one in (*self._filling, self._listening):
            one.close()
