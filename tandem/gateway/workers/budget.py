"""How many requests may be tried again at a time, so that a worker's end does not become a storm on the others.

All processes of a gateway have one budget. Nobody is refused for it: who finds no room waits until another one's second
try has begun to answer, or has been under way for so long that it is load like any other. Only who would ask somebody
else beside the one that is late does without.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from tandem.gateway.processes.board import Board

SHARE: Final = 0.2
"""Of the requests in flight."""
AT_LEAST: Final = 8
LONGEST_S: Final = 5.0
"""A try counts for so long at most; an answer that is not streamed begins when all of it is there."""
LOOK_S: Final = 0.05
"""Who waits looks so often whether there is room: another process that gives some back tells nobody."""


class Retry:
    """Room for one second try; `end` gives it back, and may be called again."""

    def __init__(self, budget: RetryBudget) -> None:
        self._budget: RetryBudget | None = budget
        self._limit = asyncio.get_running_loop().call_later(LONGEST_S, self.end)

    def end(self) -> None:
        """The try has begun to answer, or is over."""
        if self._budget is not None:
            self._limit.cancel()
            self._budget.give_back()
            self._budget = None


class RetryBudget:
    """Counts requests and second tries.

    Args:
        board: Where they are counted; None for the only process.
    """

    def __init__(self, board: Board | None = None) -> None:
        board = board or Board()
        self.in_flight = board.counter("requests")
        """Requests being served; kept by whoever serves them."""
        self._retrying = board.counter("second tries")
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._looking: asyncio.TimerHandle | None = None

    @property
    def retrying(self) -> int:
        """Second tries of this process that have not begun to answer."""
        return int(self._retrying.own)

    @property
    def waiting(self) -> int:
        """Requests of this process that wait for room."""
        return len(self._waiting)

    async def retry(self) -> Retry:
        """Wait for room, first come, first served."""
        if self._waiting or not self._has_room:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            self._look_later()
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # it was given room at the same moment
                    self.give_back()
                elif turn in self._waiting:  # `give_back` may have found it cancelled and taken it out
                    self._waiting.remove(turn)
                raise
        else:
            self._retrying.add()
        return Retry(self)

    def hedge(self) -> Retry | None:
        """Room for a try beside another one, if there is some now."""
        if self._waiting or not self._has_room:
            return None
        self._retrying.add()
        return Retry(self)

    def give_back(self) -> None:
        """One try less."""
        self._retrying.add(-1)
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting and self._has_room:
            turn = self._waiting.popleft()
            if not turn.done():
                self._retrying.add()
                turn.set_result(None)

    def _look_later(self) -> None:
        if self._waiting and self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self._looking = None
        self._hand_out()
        self._look_later()

    @property
    def _has_room(self) -> bool:
        return self._retrying.total < max(AT_LEAST, SHARE * self.in_flight.total)
