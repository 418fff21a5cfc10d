"""TCP ports of this host: which are free, and whether a given one is."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack

from tandem.errors import UsageError


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen on a port of this host now.

    Raises:
        UsageError: When the host is not an address of this machine, or the port needs more rights.
    """
    try:
        bound(host, port).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise UsageError(f"cannot listen on {host} port {port}: {reason(error)}") from None
    return True


def require_free(host: str, port: int, option: str) -> None:
    """Refuse a port that somebody listens on.

    Raises:
        UsageError: Naming the option that sets it.
    """
    if not port_is_free(host, port):
        raise UsageError(f"{option} {port}: is in use on {host}; stop what listens there, or choose another")


def require_port_number(port: int) -> None:
    """Refuse what is no port.

    Raises:
        UsageError: Naming the number and the range.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"port {port} does not exist; use --port with 1 to 65535, or 0 for any free port")


def free_port(host: str) -> int:
    """A port of this host that nothing listens on.

    Raises:
        UsageError: When the host is not an address of this machine.
    """
    return free_ports(host, 1)[0]


def free_ports(host: str, count: int) -> list[int]:
    """Several different ports of this host that nothing listens on.

    They are free when this returns; nobody else is kept from taking them.

    Raises:
        UsageError: When the host is not an address of this machine.
    """
    with ExitStack() as stack:  # all are held until the last is chosen, so that no two are the same
        try:
            sockets = [stack.enter_context(bound(host, 0)) for _ in range(count)]
        except OSError as error:
            raise UsageError(f"cannot listen on {host}: {reason(error)}") from None
        return [int(one.getsockname()[1]) for one in sockets]


def bound(host: str, port: int) -> socket.socket:
    """A socket bound to an address; a port that only lingers after a closed connection counts as free."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    one = socket.socket(family, kind, protocol)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(address)
    except OSError:
        one.close()
        raise
    return one


def reason(error: OSError) -> str:
    """What went wrong and what to do."""
    if isinstance(error, socket.gaierror):
        return "the host name is unknown; use an address of this machine, such as 127.0.0.1"
    if error.errno == errno.EADDRNOTAVAIL:
        return "not an address of this machine; use one that `ip address` lists, or 127.0.0.1"
    if error.errno == errno.EACCES:
        return "permission denied; use a port from 1024 up"
    return f"{error.strerror}; use another address or port"
