"""What the processes of one gateway have in common: where they listen, their numbers, their bus.

A supervisor tells a process in one environment variable which descriptors these are; nothing in it is secret.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from typing import Final

import msgspec

from tandem.gateway.processes.board import Board
from tandem.gateway.processes.bus import Bus

VARIABLE: Final = "TANDEM_GATEWAY_PROCESS"


class Inheritance(msgspec.Struct, frozen=True, kw_only=True):
    """What one process is told."""

    row: int
    """Which process it is, from 0."""
    rows: int
    """How many there are."""
    sockets: tuple[int, ...]
    board: int
    line: int
    """The end of its bus."""
    speaks: bool
    """Whether it is the one to say that the gateway has begun."""

    @property
    def environment(self) -> dict[str, str]:
        """What the process needs in its environment."""
        return {VARIABLE: msgspec.json.encode(self).decode()}

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What the process must inherit."""
        return (*self.sockets, self.board, self.line)


@dataclass(frozen=True, kw_only=True)
class Commons:
    """Of one process; as it is made without arguments, of one that is alone."""

    sockets: tuple[socket.socket, ...] = ()
    """They listen; none where it has to see to that itself."""
    board: Board = field(default_factory=Board)
    bus: Bus = field(default_factory=Bus)
    row: int = 0
    """Which process this is. The first one does what one of them has to do for all."""
    speaks: bool = True
    """Whether it is the one to say that the gateway has begun."""

    @property
    def has_siblings(self) -> bool:
        """Whether there are other processes."""
        return bool(self.sockets)

    @classmethod
    def inherited(cls) -> Commons | None:
        """What a supervisor has given this process; None where there is none. The variable is taken out."""
        value = os.environ.pop(VARIABLE, None)
        if value is None:
            return None
        told = msgspec.json.decode(value, type=Inheritance)
        for descriptor in told.descriptors:
            os.set_inheritable(descriptor, False)
        return cls(
            sockets=tuple(map(_listening, told.sockets)),
            board=Board(told.rows, told.row, told.board),
            bus=Bus(told.row, socket.socket(fileno=told.line)),
            row=told.row,
            speaks=told.speaks,
        )


def _listening(descriptor: int) -> socket.socket:
    sock = socket.socket(fileno=descriptor)
    sock.setblocking(False)
    return sock
