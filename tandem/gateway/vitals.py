"""How each worker is doing: whether it answers, what it has been given, how long it usually takes."""

from __future__ import annotations

from typing import Final

from tandem.gateway.board import Board
from tandem.gateway.breaker import Breaker
from tandem.gateway.exchange import Exchange, Stage
from tandem.gateway.load import Load
from tandem.gateway.worker import Worker

FORGET: Final = 0.98
"""What is left of a longest silence with every answer after it: some hundred answers later it counts no more."""


class Vitals:
    """Of one worker.

    Args:
        worker: Which.
        board: Where what all processes of a gateway have to know of it stands.
    """

    def __init__(self, worker: Worker, board: Board) -> None:
        self.worker = worker
        self.is_up = False
        self.is_draining = False
        """Whether it gets no further requests, because it is about to go."""
        self.capabilities: frozenset[str] = frozenset()
        """Of `protocol.identity.CAPABILITIES`."""
        self.digest: str | None = None
        """Of what must agree before keys and values may move between it and another one; None where it tells none."""
        self.load = Load(board, worker.url)
        self.turn = 0
        """When it was last chosen, counted in choices."""
        self.breaker = Breaker(board, worker.url)
        self.exchanges: set[Exchange] = set()
        self._silences: dict[tuple[Stage, bool], float] = {}

    def ended(self, exchange: Exchange) -> None:
        """Learn from an exchange that came to its end: its worker works, and how long it may be silent."""
        if exchange.stage == "other":  # who lists its models may still fail to run one
            return
        self.breaker.succeeded()
        for begun, silence in ((False, exchange.first_silence), (True, exchange.longest_silence)):
            key = exchange.stage, begun
            self._silences[key] = max(silence, FORGET * self._silences.get(key, 0.0))

    def usual_silence(self, exchange: Exchange) -> float:
        """The longest silence of late, in seconds, of exchanges that were as far as this one; 0 where none is known."""
        return self._silences.get((exchange.stage, exchange.has_begun), 0.0)

    def lose(self, why: str) -> None:
        """Give up everything that is open with it."""
        for exchange in tuple(self.exchanges):
            exchange.lose(why)
