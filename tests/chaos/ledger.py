"""How every request ended, and whether what was done to the instances explains it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass
from typing import Final, Literal, get_args

How = Literal["finished", "failed", "aborted"]

Cause = Literal["killed", "frozen", "deadline", "doubtful ticket"]
"""What the trial did: to an instance that had a part in the request, or by the client itself, which set a deadline that
is over or may have used up its ticket."""


@dataclass(frozen=True)
class Reason:
    """What clients are told of a failure, and what may have brought it about."""

    form: str
    causes: frozenset[Cause]


def _reason(form: str, *causes: Cause) -> Reason:
    return Reason(form, frozenset(causes))


ANYTHING: Final = get_args(Cause)

REASONS: Final = {
    "the instance was killed": _reason(r"^broken:", "killed"),
    "prefill instance not reachable": _reason(r"not reachable", "killed"),
    "hand-off broke off": _reason(r"broke off", "killed"),
    "prefill instance silent": _reason(r"silent for", "killed", "frozen"),
    "ticket of an earlier process": _reason(r"of an earlier process", "killed"),
    "ticket used, expired or unknown": _reason(r"is used up, expired or unknown", *ANYTHING),
    "prefill ended during the hand-off": _reason(
        r"the prefill was aborted, or the KV ticket was|the lease ended before", *ANYTHING
    ),
    "deadline": _reason(r"deadline_seconds are over", "deadline"),
    "a rank died": _reason(r"the instance failed", "killed"),
    "the instance was stopping": _reason(r"the instance is stopping", "killed"),
}
"""By what failures are called in the summary."""


@dataclass(frozen=True)
class Ending:
    """Of one request."""

    number: int
    way: str
    how: How
    reason: str = ""
    causes: Set[Cause] = frozenset()
    """What was done by then that may bring about a failure."""
    seconds: float = 0.0
    tokens: int = 0
    retries: int = 0

    @property
    def kind(self) -> str:
        """The reason without names and numbers."""
        return next((kind for kind, known in REASONS.items() if re.search(known.form, self.reason)), self.reason)

    @property
    def explained(self) -> bool:
        """Whether a failure is one that what was done brings about; other endings need no explanation."""
        return self.how != "failed" or (self.kind in REASONS and bool(REASONS[self.kind].causes & self.causes))


class Ledger:
    """All endings, and all wrong answers."""

    def __init__(self) -> None:
        self.endings: list[Ending] = []
        self.setbacks: list[Ending] = []
        """Attempts that failed, after which the client went on elsewhere."""
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
        return [ending for ending in (*self.endings, *self.setbacks) if not ending.explained]
