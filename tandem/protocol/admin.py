"""What a gateway tells its operator: which workers it has, and how each is doing."""

from __future__ import annotations

from typing import Literal

import msgspec

from tandem.protocol.identity import Role

State = Literal["starting", "up", "down", "draining", "drained"]
"""`starting`: it gets no requests before it has handed over once. `draining`: it gets no further ones, and has some;
`drained`: it has none."""


class WorkerState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One worker."""

    name: str
    role: Role
    url: str
    state: State
    in_flight: int
    """Requests that it serves, or that wait for keys and values that it holds."""
    breaker: Literal["closed", "half-open", "open"]
    leaving: bool = False
    """Whether it is no longer on the list, and only its last requests are waited for."""
    model: str | None = None
    """The first name it serves; this and the rest as far as it tells them."""
    digest: str | None = None
    """Of what must agree before keys and values may move."""
    version: str | None = None
    engine_id: str | None = None
    """New at every start."""
    remark: str = ""
    """What is odd about it."""


class TopologyState(msgspec.Struct, frozen=True, kw_only=True):
    """All of them."""

    epoch: int
    workers: tuple[WorkerState, ...]
