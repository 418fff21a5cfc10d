"""Those who wait for room, in order: by priority, then by arrival."""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from operator import attrgetter
from typing import Final

from tandem.gateway.request.client_request import ClientRequest

ORDER: Final = attrgetter("order")


class Turn:
    """One that waits.

    Args:
        asked: The request.
        number: Tells those apart that came at the same time.
        until: It is refused then, in seconds of a clock.
    """

    def __init__(self, asked: ClientRequest, number: int, until: float) -> None:
        self.asked = asked
        self.order = (asked.body.priority, asked.record.began, number)
        self.until = until
        self.called = asyncio.Event()
        self.is_pushed_out = False

    @property
    def has_begun(self) -> bool:
        """Whether another answer to the same request was let in: then it is not refused any more."""
        return self.asked.record.tries > 0


class Waiting:
    """A queue of a bounded length.

    Args:
        most: So many may wait, and those who are not refused any more.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._turns: list[Turn] = []

    def __len__(self) -> int:
        return len(self._turns)

    def is_first(self, turn: Turn) -> bool:
        """Whether it is the next one."""
        return self._turns[0] is turn

    def call(self) -> None:
        """Wake the first one."""
        if self._turns:
            self._turns[0].called.set()

    def enter(self, turn: Turn) -> bool:
        """Queue up; where the queue is full, in place of the last one, if that is of less priority. Else False."""
        if len(self) >= self._most and not turn.has_begun and not self._push_out_for(turn):
            return False
        insort(self._turns, turn, key=ORDER)
        self.call()
        return True

    def leave(self, turn: Turn) -> None:
        """Be gone, and let the next one see whether it is its turn."""
        at = bisect_left(self._turns, turn.order, key=ORDER)
        if at < len(self) and self._turns[at] is turn:
            del self._turns[at]
        self.call()

    def _push_out_for(self, turn: Turn) -> bool:
        last = self._turns[-1] if self._turns else turn
        if last.has_begun or last.order[0] <= turn.order[0]:
            return False
        self._turns.pop()
        last.is_pushed_out = True
        last.called.set()
        return True
