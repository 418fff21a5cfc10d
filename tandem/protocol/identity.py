"""Who an instance is: what `GET /identity` answers and what both sides of a hand-off compare."""

from __future__ import annotations

from typing import Literal

import msgspec

Role = Literal["prefill", "decode", "both"]


class Identity(msgspec.Struct, frozen=True, kw_only=True):
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
