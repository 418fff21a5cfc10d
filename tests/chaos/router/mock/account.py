"""What an instance does, how its requests ended, and what was done wrongly to it: most of `GET /mock/state`."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

Phase = Literal["prefilling", "decoding"]


class Account:
    """Counts of one process."""

    def __init__(self) -> None:
        self.active: Counter[Phase] = Counter({"prefilling": 0, "decoding": 0})
        self.endings: Counter[str] = Counter({"finished": 0, "aborted": 0, "failed": 0})
        self.begun = 0
        self.tokens = 0
        self.misuse: list[str] = []
        self.refused: list[str] = []
        """Tickets that were not honoured, where the instance says so instead of answering wrongly."""

    @contextmanager
    def request(self, phase: Phase) -> Iterator[None]:
        """One request, from its admission to its end."""
        self.active[phase] += 1
        self.begun += 1
        how = "failed"
        try:
            yield
            how = "finished"
        except (asyncio.CancelledError, ConnectionError):
            how = "aborted"
            raise
        finally:
            self.active[phase] -= 1
            self.endings[how] += 1

    def told(self) -> dict[str, Any]:
        """For the kit."""
        return {
            "active": dict(self.active),
            "endings": dict(self.endings),
            "begun": self.begun,
            "tokens": self.tokens,
            "misuse": self.misuse,
            "refused": self.refused,
        }
