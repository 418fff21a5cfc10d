"""What a worker has been given by all processes and has not finished: the ledger that routing and admission read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tandem.gateway.processes.board import Board

MOST_TOKENS: Final = 2**40
"""Of one request: far more than a body can hold, and few enough that their sum stays exact."""


class Load:
    """Of one worker.

    Args:
        board: Where it is counted.
        url: Whose.
    """

    def __init__(self, board: Board, url: str) -> None:
        self._requests = board.counter(f"{url} requests")
        self._tokens = board.counter(f"{url} tokens")

    @property
    def requests(self) -> int:
        """In flight."""
        return int(self._requests.total)

    @property
    def tokens(self) -> float:
        """Of their prompts, and of their answers as far as these are foreseen."""
        return self._tokens.total

    def begin(self, tokens: int) -> None:
        """Count a request of so many tokens; one that cannot be is not counted at all."""
        assert 0 <= tokens < MOST_TOKENS, f"{tokens} tokens"
        self._requests.add()
        self._tokens.add(tokens)

    def end(self, tokens: int) -> None:
        """It is over, or moved on."""
        self._requests.add(-1)
        self._tokens.add(-tokens)

    @contextmanager
    def carrying(self, tokens: int) -> Iterator[None]:
        """Count one while the block runs."""
        self.begin(tokens)
        try:
            yield
        finally:
            self.end(tokens)
