"""An instance behind the gateway, by name."""

from __future__ import annotations

from dataclasses import dataclass

from tandem.protocol.identity import Role


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One instance behind the gateway."""

    name: str
    """`prefill-0`, `decode-1`, …: all that a client ever learns about it."""
    url: str
    """Its base address, without a trailing slash."""
    role: Role
    """What it is asked to do; `both` when the gateway knows no prefill instances."""
