"""Who is let in: a request waits until a decode worker has room for its keys and values, or is refused.

    arrival ──▶ queue, by priority, then by arrival ──▶ place: a route, booked ──▶ legs
      │           └──▶ 429 waited too long, or pushed out; 504 deadline over; its client has left
      └──▶ 429 the queue is full

Nobody looks whether it is its turn: the first in the queue is called when something has ended or changed, and calls the
next one when it goes. Where nobody waits and there is room, letting in is a few calls of functions.

The choice of a worker and the booking of its room are one: between them nothing else runs. What was let in once is
never refused for lack of room: another try of it goes where most is left. Prefill workers have no such limit: what they
hold is given away with the hand-off, so their queue is bounded by the room for decoding, and the policy shares it out.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from types import TracebackType
from typing import Final, Literal, Self

from tandem.errors import RequestError
from tandem.gateway.admission.queue_limits import QueueLimits
from tandem.gateway.admission.reservation import Reservations
from tandem.gateway.admission.waiting import Turn, Waiting
from tandem.gateway.observability.metrics import GatewayMetrics
from tandem.gateway.request.client_request import ClientRequest
from tandem.gateway.workers.capacity import NoRoomError
from tandem.gateway.workers.pool import Pool
from tandem.gateway.workers.route import Route

LOOK_S: Final = 0.1
"""While somebody waits it is looked so often for what nobody tells: room that another process of the gateway gave back,
or a breaker whose pause is over."""
PACE: Final = 64
"""So many that were let in last tell how fast the queue moves."""
LONGEST_RETRY_S: Final = 60.0
"""Longest time after which a client that was refused is told to come again; the shortest is a second."""

Plan = Callable[[bool], Route]
"""The next route of a request; with True over a worker that has room, or NoRoomError."""
Reason = Literal["queue_full", "queue_seconds", "pushed_out", "deadline"]
"""Why a request was turned away."""


class Place:
    """A route with room that is booked on it, given back when the block ends."""

    def __init__(self, admission: Admission, route: Route, tokens: int) -> None:
        self._admission = admission
        self._load = admission.pool.vitals(route.decode).load  # the same at its end, whoever was taken out meanwhile
        self._tokens = tokens
        self.route = route
        self.reservation: str | None = None
        """Under which name the decode worker itself keeps room."""
        self._load.begin(tokens)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.end(used=kind is None)

    def end(self, *, used: bool = False) -> None:
        """Give the room back; a reservation that nobody came for, too."""
        self._load.end(self._tokens)
        if self.reservation is not None and not used:
            self._admission.reservations.give_back(self.route.decode, self.reservation)
        self._admission.call()


class Admission:
    """The queue of one process of a gateway.

    Args:
        limits: How many wait, and for how long.
        pool: Whose room it is.
        reservations: To ask a worker that is nearly full whether it has room.
        metrics: Waits and refusals are counted there.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        limits: QueueLimits,
        *,
        pool: Pool,
        reservations: Reservations,
        metrics: GatewayMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pool = pool
        self.reservations = reservations
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._numbers = count()
        self._queue = Waiting(limits.queue)
        self._passed: deque[float] = deque(maxlen=PACE)
        """When the last ones were let in."""
        self._looking: asyncio.TimerHandle | None = None
        pool.on_change = self.call

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def call(self) -> None:
        """Something has ended or changed: let the first one see whether there is room for it."""
        self._queue.call()

    async def place(self, asked: ClientRequest, plan: Plan, *, was_let_in: bool) -> Place:
        """A place for a request, at once where there is room and nobody waits; end it.

        Args:
            asked: The request.
            plan: Its next route.
            was_let_in: It is another try of what was let in before.

        Raises:
            RequestError: 429, with the seconds until it is worth another try; 504, its deadline is over; or what `plan`
                raises.
        """
        if was_let_in:
            return self._book(plan(False), asked)
        turn: Turn | None = None
        while True:
            route = None if self._queue else _planned(plan)
            if route is None:
                turn = turn or Turn(asked, next(self._numbers), self._clock() + self._limits.queue_seconds)
                route = await self._wait(turn, plan)
            place = self._book(route, asked)
            if not self._is_doubtful(route) or await self._is_kept(place, asked):
                self._passed.append(self._clock())
                return place

    def _book(self, route: Route, asked: ClientRequest) -> Place:
        """What cannot fit books nothing: it is refused at once, or the estimate is worth nothing, and a look tells."""
        tokens = asked.demand.tokens
        fits = self.pool.vitals(route.decode).capacity.could_hold(tokens)
        return Place(self, route, tokens if fits else 0)

    async def _wait(self, turn: Turn, plan: Plan) -> Route:
        """Its route, when it is its turn and there is room."""
        if not self._queue.enter(turn):
            raise self._turned_away("queue_full", f"{len(self._queue)} requests wait already")
        if self._looking is None:
            self._look()
        with turn.asked.record.queued(), self._metrics.queue_seconds.time():
            try:
                while True:
                    await self._called(turn)
                    if self._queue.is_first(turn) and (route := _planned(plan)) is not None:
                        return route
            finally:
                self._queue.leave(turn)

    async def _called(self, turn: Turn) -> None:
        """Wait until it is called, or has to go."""
        left = turn.asked.left_s()
        patience = None if turn.has_begun else turn.until - self._clock()
        try:
            async with asyncio.timeout(min((one for one in (left, patience) if one is not None), default=None)):
                await turn.called.wait()
        except TimeoutError:
            self._check_time(turn)
        turn.called.clear()
        if turn.is_pushed_out:
            raise self._turned_away("pushed_out", "requests that come first take all the room")

    def _check_time(self, turn: Turn) -> None:
        try:
            turn.asked.left_s()
        except RequestError:
            self._metrics.turned_away("deadline")
            raise
        if not turn.has_begun and self._clock() >= turn.until:
            raise self._turned_away("queue_seconds", f"there was no room for {self._limits.queue_seconds:g} s")

    def _turned_away(self, reason: Reason, why: str) -> RequestError:
        self._metrics.turned_away(reason)
        wait_s = self._until_next_s()
        return RequestError(
            f"the service has more requests than it can serve: {why}; try again in {wait_s:.0f} s",
            status=429,
            code="overloaded",
            retry_after=wait_s,
        )

    def _until_next_s(self) -> float:
        """How long one who came now would wait, by how fast others were let in of late."""
        if not self._passed:
            return 1.0
        pace = (self._clock() - self._passed[0]) / len(self._passed)
        return max(1.0, min((len(self._queue) + 1) * pace, LONGEST_RETRY_S))

    def _look(self) -> None:
        self._looking = asyncio.get_running_loop().call_later(LOOK_S, self._look) if self._queue else None
        self.call()

    def _is_doubtful(self, route: Route) -> bool:
        """Whether a prefill may be wasted, because the decode worker is nearly full; it is asked then."""
        decode = route.decode
        vitals = self.pool.vitals(decode)
        return (
            route.kind == "apart" and vitals.capacity.is_nearly_full(vitals.load) and self.pool.can("reserve", decode)
        )

    async def _is_kept(self, place: Place, asked: ClientRequest) -> bool:
        """Whether the worker keeps room, or does not say; otherwise the place is given up."""
        decode, tokens = place.route.decode, asked.demand.tokens
        vitals = self.pool.vitals(decode)
        try:
            place.reservation = await self.reservations.keep(decode, round(vitals.capacity.scale * tokens) or 1)
        except NoRoomError:
            place.end()
            vitals.capacity.refused(vitals.load.tokens, tokens)
            return False
        except BaseException:
            place.end()
            raise
        return True


def _planned(plan: Plan) -> Route | None:
    """A route with room, or None."""
    try:
        return plan(True)
    except NoRoomError:
        return None
