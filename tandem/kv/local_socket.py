"""A second way to an instance's KV port, for processes of this host: a socket named after the engine id.

The name is an abstract one (Linux), so it is gone with the process and seen only in the same network namespace. Anybody
there may take or use it, so both ends ask the kernel who the other is.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Callable
from hashlib import blake2b

SUPPORTED = sys.platform == "linux"


def listen(engine_id: str) -> socket.socket | None:
    """A socket that hears this host's pullers; None where there can be none, and they come over TCP."""
    return _opened(engine_id, socket.socket.bind)


def connect(engine_id: str) -> socket.socket | None:
    """A connection to an instance of this host and this user; None if there is none."""
    sock = _opened(engine_id, socket.socket.connect)
    if sock is not None and not same_user(sock):
        sock.close()
        return None
    return sock


def same_user(sock: socket.socket) -> bool:
    """Whether the process at the other end of a local connection is this user's."""
    packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", packed)
    return bool(user == os.geteuid())


def _opened(engine_id: str, act: Callable[[socket.socket, str], None]) -> socket.socket | None:
    if not SUPPORTED:
        return None
    name = blake2b(engine_id.encode(errors="replace"), digest_size=16).hexdigest()
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)  # a full backlog is an error then, not a wait
    try:
        act(sock, f"\0tandem-kv-{name}")
    except OSError:
        sock.close()
        return None
    return sock
