"""What a worker has been given and has not finished: the ledger that routing and admission read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Load:
    """Of one worker."""

    requests: int = 0
    """In flight."""
    tokens: int = 0
    """Of their prompts, and of their answers as far as these are foreseen."""

    def begin(self, tokens: int) -> None:
        """Count a request of so many tokens."""
        self.requests += 1
        self.tokens += tokens

    def end(self, tokens: int) -> None:
        """It is over, or moved on."""
        self.requests -= 1
        self.tokens -= tokens

    @contextmanager
    def carrying(self, tokens: int) -> Iterator[None]:
        """Count one while the block runs."""
        self.begin(tokens)
        try:
            yield
        finally:
            self.end(tokens)
