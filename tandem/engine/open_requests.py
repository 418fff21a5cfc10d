"""The requests of an instance that have not ended: what they are given, and what is to be told of it."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import replace

from tandem.engine.handoff import HandOff
from tandem.engine.request import Request
from tandem.engine.sampled import Sampled
from tandem.engine.scheduler import Scheduler
from tandem.engine.sequence import Sequence, Status
from tandem.engine.stats import Stats
from tandem.engine.tickets import Tickets
from tandem.engine.update import Update
from tandem.kv.lease import Lease

Updates = list[tuple[str, Update]]
"""Request ids, and what happened to them."""


class OpenRequests:
    """Sequences of every request that has not ended, one for each choice once they have parted.

    The engine's lock guards it, with all that it is given.

    Args:
        made: The sequence of a request's choice that arrived at some place in the order of all.
        scheduler: Gets them, and loses those that end.
        tickets: Of those whose rest is another instance's.
        stats: Counts tokens and ends.
    """

    def __init__(
        self, made: Callable[[Request, int, int], Sequence], scheduler: Scheduler, tickets: Tickets, stats: Stats
    ) -> None:
        self._made, self._scheduler, self._tickets, self._stats = made, scheduler, tickets, stats
        self._sequences: dict[str, list[Sequence]] = {}
        self._arrivals = 0
        self._updates: Updates = []

    def add(self, request: Request, reservation: Lease | None) -> None:
        """Take in a request, with the blocks that are kept for it."""
        assert request.id not in self._sequences, f"two requests are called {request.id}"
        self._arrivals += 1
        sequence = self._made(request, request.choices[0], self._arrivals)
        sequence.reservation = reservation
        self._sequences[request.id] = [sequence]
        self._scheduler.add(sequence)
        if sequence.over is not None:
            self.tell(request.id, sequence.close())
            self._end(sequence, Status.FINISHED)
        elif request.keep_for_remote:
            self._tickets.open(sequence)

    def tell(self, request: str, update: Update) -> None:
        """Something happened to a request."""
        self._updates.append((request, update))

    def taken_updates(self) -> Updates:
        """What happened since the last call."""
        updates, self._updates = self._updates, []
        return updates

    def extend(self, sequence: Sequence, sampled: Items[Sampled]) -> None:
        """Give a sequence its next token; the first one parts it from its request's other choices."""
        if sequence.request.keep_for_remote:
            self._hand_over(sequence, sampled)
            return
        others = [self._fork(sequence, choice) for choice in sequence.request.choices[1:]] if sequence.fork else []
        for one, token in zip((sequence, *others), sampled, strict=True):
            self._append(one, token)
        if not sequence.ended and sequence.status is not Status.DECODING:
            sequence.move(Status.DECODING)

    def fail(self, request: str, error: str, status: int, end: Status = Status.FAILED) -> None:
        """A request cannot go on; does nothing if it ended."""
        for sequence in self.end_all(request, end):
            self.tell(request, Update(reason="error", error=error, status=status, choice=sequence.choice))

    def end_all(self, request: str, status: Status) -> list[Sequence]:
        """End all choices of a request that have not; returns those."""
        sequences = list(self._sequences.get(request, ()))
        for sequence in sequences:
            self._end(sequence, status)
        return sequences

    def _fork(self, sequence: Sequence, choice: int) -> Sequence:
        """Another choice: it waits like a preempted one and finds the prompt's blocks known."""
        other = self._made(sequence.request, choice, sequence.arrival)
        other.sampling, other.fetches, other.reservation = sequence.sampling, False, sequence.reservation
        other.reused, other.pulled_at = sequence.reused, sequence.pulled_at
        self._sequences[sequence.request.id].append(other)
        self._scheduler.add(other)
        return other

    def _append(self, sequence: Sequence, sampled: Sampled) -> None:
        update = sequence.append(sampled)
        self._stats.tokens_generated += 1
        self.tell(sequence.request.id, update)
        if update.reason is not None:
            self._end(sequence, Status.FINISHED)

    def _hand_over(self, sequence: Sequence, sampled: Items[Sampled]) -> None:
        """The first token is there and the rest is another instance's: the ticket takes the blocks."""
        request = sequence.request
        others = [self._made(request, choice, sequence.arrival) for choice in request.choices[1:]]
        self._stats.tokens_generated += len(sampled)
        state = HandOff(
            prompt=len(request.prompt),
            seed=sequence.sampling.seed,
            first=list(sampled),
            reused=sequence.reused or 0,
        )
        ticket = self._tickets.close(sequence, state)
        for one, token in zip((sequence, *others), sampled, strict=True):
            one.reused = sequence.reused
            update = one.append(token)
            self.tell(request.id, replace(update, reason=update.reason or "length", ticket=ticket))
        self._end(sequence, Status.FINISHED)

    def _end(self, sequence: Sequence, status: Status) -> None:
        self._tickets.drop(sequence)
        self._scheduler.remove(sequence)
        sequence.move(status)
        self._stats.ended[status] += 1
        siblings = self._sequences[sequence.request.id]
        siblings.remove(sequence)
        if not siblings:
            del self._sequences[sequence.request.id]
