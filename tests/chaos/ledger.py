"""How every request ended, and whether what was done to the instances explains it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Final, Literal

How = Literal["finished", "failed", "aborted"]

REASONS: Final = {
    "the instance was killed or frozen": r"^broken:",
    "prefill instance not reachable": r"not reachable",
    "hand-off broke off": r"broke off",
    "prefill instance silent": r"silent for",
    "ticket of an earlier process": r"of an earlier process",
    "ticket used, expired or unknown": r"is used up, expired or unknown",
    "prefill ended during the hand-off": r"the prefill was aborted, or the KV ticket was|the lease ended before",
    "deadline": r"deadline_seconds are over",
    "a rank died": r"the instance failed",
    "the instance was stopping": r"the instance is stopping",
}
"""What failures are called in the summary, by what the client is told."""


@dataclass(frozen=True)
class Ending:
    """Of one request."""

    number: int
    way: str
    how: How
    reason: str = ""
    explained: bool = True
    seconds: float = 0.0
    tokens: int = 0
    retries: int = 0

    @property
    def kind(self) -> str:
        """The reason without names and numbers."""
        return next((kind for kind, form in REASONS.items() if re.search(form, self.reason)), self.reason)


class Ledger:
    """All endings, and all wrong answers."""

    def __init__(self) -> None:
        self.endings: list[Ending] = []
        self.wrong: list[str] = []

    def count(self, how: How) -> int:
        return sum(ending.how == how for ending in self.endings)

    @property
    def kinds(self) -> Counter[tuple[str, str]]:
        """Endings by how and why."""
        return Counter((ending.how, ending.kind) for ending in self.endings)

    @property
    def unexplained(self) -> list[Ending]:
        """Failures without a cause that the trial knows of, or without a known reason."""
        return [e for e in self.endings if e.how == "failed" and not (e.explained and e.kind in REASONS)]
