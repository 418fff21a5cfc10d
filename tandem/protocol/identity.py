"""Who an instance is: what `GET /identity` answers and what both sides of a hand-off compare."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Role = Literal["prefill", "decode", "both"]

CAPABILITIES: Final = ("reserve", "release", "resume", "ticket_reuse", "early_ticket", "named_ticket", "choices")
"""What an instance of ours can do beyond the OpenAI API and vLLM's pull protocol: reserve blocks, release them, go on
with another instance's answer, let a ticket be pulled more than once, tell it before the blocks are computed, call it
what the router wishes, and hand over a request with several choices."""


class Seat(msgspec.Struct, frozen=True, kw_only=True):
    """An instance's place in a global rank table."""

    host: str
    """`server_ip` of its entry."""
    devices: tuple[int, ...]
    """Physical numbers of its devices, in rank order."""
    table: str
    """Digest of the whole table, which is the same for every instance of a service."""

    def __str__(self) -> str:
        return f"devices {','.join(map(str, self.devices))} of {self.host}"


class Identity(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One running instance."""

    role: Role
    engine_id: str
    """New at every start, so that a restarted instance is never mistaken for the old one."""
    model: str
    """The first served name."""
    digest: str
    """Hash of everything that must agree before keys and values may move between two instances."""
    max_model_len: int
    """Most tokens of prompt plus answer."""
    version: str
    capabilities: list[str]
    """Of `CAPABILITIES`."""
    tensor_parallel_size: int
    """Processes that hold a part of the model each."""
    seat: Seat | None = None
    """Where it stands in a rank table; None, and not told, for an instance that was started without one."""
