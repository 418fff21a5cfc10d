"""Where a gateway listens: bound once, before there is anybody to answer, and shared by all of its processes."""

from __future__ import annotations

import errno
import socket
from typing import Any, Final

from tandem.errors import UsageError

BACKLOG: Final = 1024
"""Connections that wait to be accepted, at most; the kernel may have a lower limit."""


def listen(host: str, port: int) -> tuple[socket.socket, ...]:
    """Sockets that listen, one for each address of `host`.

    Raises:
        UsageError: The address cannot be listened on.
    """
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in dict.fromkeys(found):
            sockets.append(_bound(family, address))
    except (OSError, UnicodeError) as error:
        for one in sockets:
            one.close()
        raise _refusal(host, port, error) from error
    return tuple(sockets)


def url_of(address: tuple[Any, ...], scheme: str = "http") -> str:
    """The base URL of what listens at a socket's address."""
    host, port = address[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _bound(family: int, address: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _refusal(host: str, port: int, error: Exception) -> UsageError:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return UsageError(
            f"gateway: port {port} on {host} is in use; stop what listens there or choose another with --port"
        )
    return UsageError(f"gateway: cannot listen on {host}:{port} ({error}); choose another --host or --port")
