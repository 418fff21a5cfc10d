"""A worker that fails again and again is left alone for a while, then tried with one request."""

from __future__ import annotations

from typing import Final, Literal

State = Literal["closed", "half-open", "open"]

FAILURES_TO_OPEN: Final = 3
"""Failures in a row, nothing good between them."""
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
"""The pause doubles with every trial that fails, up to this."""


class Breaker:
    """Closed: requests pass. Open: none do, for a pause. Half-open: the pause is over, and one may try."""

    def __init__(self) -> None:
        self._failures = 0
        self._opened_at: float | None = None
        self._pause_s = FIRST_PAUSE_S
        self._trying_since: float | None = None

    @property
    def is_closed(self) -> bool:
        """Whether nothing is held against it, at whatever time."""
        return self._opened_at is None

    def state(self, now: float) -> State:
        """How it stands at a time, in seconds of a monotonic clock."""
        if self._opened_at is None:
            return "closed"
        return "open" if now < self._opened_at + self._pause_s else "half-open"

    def allows(self, now: float) -> bool:
        """Whether a request may be sent at a time, in seconds of a monotonic clock."""
        state = self.state(now)
        trying = self._trying_since is not None and now < self._trying_since + self._pause_s
        return state == "closed" or (state == "half-open" and not trying)

    def chosen(self, now: float) -> None:
        """Note that a request is sent: of a half-open one it is the trial."""
        if self._opened_at is not None:
            self._trying_since = now

    def succeeded(self) -> None:
        """Note an answer that came to its end."""
        self._failures, self._opened_at, self._trying_since, self._pause_s = 0, None, None, FIRST_PAUSE_S

    def failed(self, now: float) -> None:
        """Note a failure."""
        self._failures += 1
        if self._opened_at is not None and self._trying_since is not None:
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            self._opened_at, self._trying_since = now, None
        elif self._opened_at is None and self._failures >= FAILURES_TO_OPEN:
            self._opened_at = now
