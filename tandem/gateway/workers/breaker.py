"""A worker that fails again and again is left alone for a while, then tried with one request.

All processes of a gateway have the same breaker: it opens for all, and one of them tries for all.
"""

from __future__ import annotations

from typing import Final, Literal

from tandem.gateway.processes.board import Board

State = Literal["closed", "half-open", "open"]

FAILURES_TO_OPEN: Final = 3
"""Failures in a row, nothing good between them."""
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
"""The pause doubles with every trial that fails, up to this."""


class Breaker:
    """Closed: requests pass. Open: none do, for a pause. Half-open: the pause is over, and one may try.

    Args:
        board: Where it stands.
        url: Whose it is.
    """

    def __init__(self, board: Board, url: str) -> None:
        self._board = board
        self._failures = board.common(f"{url} failures")
        self._opened_at = board.common(f"{url} opened at")  # 0 while it is closed
        self._pause = board.common(f"{url} pause")  # 0 for the first one
        self._trying_since = board.common(f"{url} trying since")  # 0 while nobody tries

    @property
    def is_closed(self) -> bool:
        """Whether nothing is held against it, at whatever time."""
        return not self._opened_at.value

    def state(self, now: float) -> State:
        """How it stands at a time, in seconds of a monotonic clock that all processes have."""
        if self.is_closed:
            return "closed"
        return "open" if now < self._opened_at.value + self._pause_s else "half-open"

    def allows(self, now: float) -> bool:
        """Whether a request may be sent at a time."""
        if self.is_closed:
            return True
        trying = now < self._trying_since.value + self._pause_s
        return self.state(now) == "half-open" and not trying

    def chosen(self, now: float) -> None:
        """Note that a request is sent: of a half-open one it is the trial."""
        if not self.is_closed:
            with self._board.changing():
                self._trying_since.value = now

    def succeeded(self) -> None:
        """Note an answer that came to its end."""
        if self._failures.value or not self.is_closed:
            with self._board.changing():
                self._opened_at.value = self._trying_since.value = self._pause.value = self._failures.value = 0

    def failed(self, now: float) -> None:
        """Note a failure."""
        with self._board.changing():
            self._failures.value += 1
            if self.is_closed and self._failures.value >= FAILURES_TO_OPEN:
                self._opened_at.value = now
            elif not self.is_closed and self._trying_since.value:
                self._pause.value = min(2 * self._pause_s, LONGEST_PAUSE_S)
                self._opened_at.value, self._trying_since.value = now, 0

    @property
    def _pause_s(self) -> float:
        return self._pause.value or FIRST_PAUSE_S
