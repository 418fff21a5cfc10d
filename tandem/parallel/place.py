"""`Place`: where a process stands among the ranks of a run, as a launcher tells it. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

VARIABLES: Final = ("TANDEM_RANK", "TANDEM_RANKS", "TANDEM_LOCAL_RANK", "TANDEM_MEETING")
"""Environment variables with which a launcher gives a process its place."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a process stands among the ranks."""

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    """Among those of its host; its device has this number."""
    meeting: str = ""
    """`file:PATH`, of an open file the ranks inherited, or `tcp:HOST:PORT`; empty for a rank that is alone."""

    @property
    def environment(self) -> dict[str, str]:
        """As a launcher says it."""
        told = (self.rank, self.ranks, self.local_rank, self.meeting)
        return dict(zip(VARIABLES, map(str, told), strict=True))

    @classmethod
    def told(cls, environment: Mapping[str, str]) -> Place | None:
        """The place a launcher has given this process; None where none has."""
        if VARIABLES[0] not in environment:
            return None
        rank, ranks, local_rank, meeting = (environment[name] for name in VARIABLES)
        return cls(rank=int(rank), ranks=int(ranks), local_rank=int(local_rank), meeting=meeting)
