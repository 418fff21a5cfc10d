"""How each worker is doing: whether it answers, what it has been given, how long it usually takes."""

from __future__ import annotations

from typing import Final

from tandem.gateway.processes.board import Board
from tandem.gateway.wire.exchange import Cause, Exchange
from tandem.gateway.wire.silence import Silences
from tandem.gateway.wire.worker import Worker
from tandem.gateway.workers.breaker import Breaker
from tandem.gateway.workers.capacity import Capacity
from tandem.gateway.workers.load import Load

MOST_WITHOUT_TICKET: Final = 8
"""Prefills in a row without a ticket: so many may be due to what was asked for."""


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
        self.is_suspect = False
        """Whether somebody has waited in vain for it, so that it shall be asked whether it lives."""
        self.is_on_trial = False
        """Whether it gets no requests yet, because it has not handed over once."""
        self.capabilities: frozenset[str] = frozenset()
        """Of `protocol.identity.CAPABILITIES`."""
        self.digest: str | None = None
        """Of what must agree before keys and values may move between it and another one; None where it tells none."""
        self.load = Load(board, worker.url)
        self.capacity = Capacity()
        self.turn = 0
        """When it was last chosen, counted in choices."""
        self.breaker = Breaker(board, worker.url)
        self.exchanges: set[Exchange] = set()
        self.without_ticket = MOST_WITHOUT_TICKET
        """Prefills in a row that brought none; as long as it has never given one, they are held against it."""
        self.silences = Silences()

    @property
    def serves(self) -> bool:
        """Whether it may get requests, whatever its breaker says."""
        return self.is_up and not self.is_draining and not self.is_on_trial

    def ended(self, exchange: Exchange) -> None:
        """Learn from an exchange that came to its end: its worker works, and how long it may be silent."""
        if exchange.stage == "other":  # who lists its models may still fail to run one
            return
        self.breaker.succeeded()
        self.silences.learn(exchange.stage, exchange.silence)

    @property
    def begun_tokens(self) -> float:
        """About how many of the tokens it has been given belong to answers that have begun."""
        begun = [exchange.silence.has_begun for exchange in self.exchanges if exchange.stage in ("stream", "whole")]
        return self.load.tokens * sum(begun) / len(begun) if begun else 0.0

    def lose(self, why: str, cause: Cause) -> None:
        """Give up everything that is open with it."""
        for exchange in tuple(self.exchanges):
            exchange.lose(why, cause)
