"""The workers the gateway knows, how each is doing, and whose turn it is; they come and go while it runs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Literal

from tandem.errors import RequestError
from tandem.gateway.processes.board import Board
from tandem.gateway.request.demand import Demand
from tandem.gateway.wire.exchange import Exchange
from tandem.gateway.wire.worker import Worker
from tandem.gateway.workers.breaker import State
from tandem.gateway.workers.capacity import NoRoomError
from tandem.gateway.workers.policy import POLICIES, Policy, PolicyName
from tandem.gateway.workers.ready import Ready
from tandem.gateway.workers.vitals import Vitals
from tandem.protocol.identity import Role

Capability = Literal["early_ticket", "named_ticket", "release", "reserve", "resume", "ticket_reuse"]
"""Of `protocol.identity.CAPABILITIES`, what the gateway makes use of."""


class Pool:
    """The workers of each role, those who are ready for requests, and the choice among them.

    Args:
        workers: Who is there from the start; each counts as down until `mark` says otherwise.
        policy: How one of those who are ready is chosen, in each role by itself.
        short_tokens: With fewer tokens to compute, a prompt is left to a decode worker.
        is_open: Whether requests are taken as soon as somebody is up; else only once this is set.
        max_in_flight: Most requests at a time for one decode worker; None for any number.
        board: What the processes of a gateway have in common; None where there is one.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        *,
        policy: PolicyName = "least_loaded",
        short_tokens: int = 0,
        is_open: bool = True,
        max_in_flight: int | None = None,
        board: Board | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_open = is_open
        self.on_change: Callable[[], None] = lambda: None
        """Called when somebody may be ready, or have room, who was not or had none."""
        self._max_in_flight = max_in_flight
        self._board = board or Board()
        self._clock = clock
        self._short_tokens = short_tokens
        self._vitals = {worker: Vitals(worker, self._board) for worker in workers}
        self._policies: dict[Role, Policy] = {role: POLICIES[policy]() for role in ("prefill", "decode")}
        self._ready = Ready(self._vitals, clock)

    @property
    def workers(self) -> tuple[Worker, ...]:
        """All who are known, in the order in which they came."""
        return tuple(self._vitals)

    def add(self, worker: Worker) -> None:
        """Get to know a worker; it is down until `mark` says otherwise."""
        assert worker not in self._vitals
        self._vitals[worker] = Vitals(worker, self._board)
        self._changed()

    def try_out(self, worker: Worker) -> None:
        """Give a worker no requests before it has shown that it can serve them."""
        self.vitals(worker).is_on_trial = True
        self._changed()

    def admit(self, worker: Worker) -> None:
        """It has."""
        self.vitals(worker).is_on_trial = False
        self._changed()

    def drain(self, worker: Worker) -> None:
        """Give a worker no further requests; those it has go on."""
        self._vitals[worker].is_draining = True
        self._changed()

    def undrain(self, worker: Worker) -> None:
        """Give it some again."""
        self._vitals[worker].is_draining = False
        self._changed()

    def remove(self, worker: Worker) -> None:
        """Forget a worker; what is open with it goes on elsewhere, if it can."""
        self._vitals.pop(worker).lose("was taken out of the service", "left")
        self._forget(worker)

    def restarted(self, worker: Worker) -> None:
        """Note that another process answers in a worker's place: what the old one had cached and begun is gone."""
        self.vitals(worker).lose("was started again", "left")
        self._forget(worker)

    def in_flight(self) -> Counter[Worker]:
        """Exchanges that are open with each worker, or elsewhere and wait for keys and values that it holds."""
        found = Counter[Worker]()
        for worker, vitals in self._vitals.items():
            found[worker] += len(vitals.exchanges)
            waiting = (exchange.source for exchange in vitals.exchanges if not exchange.silence.has_begun)
            found.update(source for source in waiting if source is not None)
        return found

    @property
    def apart(self) -> bool:
        """Whether prefill and decode are served by different workers."""
        return any(worker.role == "prefill" for worker in self._vitals)

    @property
    def missing(self) -> tuple[Role, ...]:
        """The roles of which no worker is up and serves."""
        roles = dict.fromkeys(worker.role for worker in self._vitals)
        serving = {worker.role for worker, vitals in self._vitals.items() if vitals.serves}
        return tuple(role for role in roles if role not in serving)

    @property
    def down(self) -> tuple[str, ...]:
        """The names of the workers that are not up."""
        return tuple(worker.name for worker, vitals in self._vitals.items() if not vitals.is_up)

    @property
    def pairs(self) -> tuple[tuple[Worker, Worker], ...]:
        """Every way a request may go: prefill and decode worker."""
        prefill = [worker for worker in self._vitals if worker.role == "prefill"]
        return tuple(product(prefill, (worker for worker in self._vitals if worker.role != "prefill")))

    def vitals(self, worker: Worker) -> Vitals:
        """How a worker is doing; of one that was taken out, nothing that anybody else sees."""
        return self._vitals.get(worker) or Vitals(worker, Board())

    def is_up(self, worker: Worker) -> bool:
        """Whether `worker` answered its last health checks."""
        return self.vitals(worker).is_up

    def mark(self, worker: Worker, *, up: bool) -> None:
        """Record what a health check found; what is open with a worker that is down goes on elsewhere, if it can."""
        vitals = self.vitals(worker)
        if vitals.is_up != up:
            vitals.is_up = up
            self._changed() if up else self._forget(worker)
        if not up and self.has_others(worker):
            vitals.lose("does not answer its health checks", "frozen")

    def has_others(self, worker: Worker) -> bool:
        """Whether anybody else serves, so that what is open with a worker could go on elsewhere."""
        return any(vitals.serves for other, vitals in self._vitals.items() if other is not worker)

    def breaker_state(self, worker: Worker) -> State:
        """How a worker's breaker stands."""
        return self.vitals(worker).breaker.state(self._clock())

    def failed(self, worker: Worker) -> None:
        """Record that a worker failed a request."""
        self.vitals(worker).breaker.failed(self._clock())
        self._changed()

    @contextmanager
    def open(self, exchange: Exchange) -> Iterator[None]:
        """Keep account of an exchange while the block runs; one that ends well speaks for its worker."""
        vitals = self.vitals(exchange.worker)
        vitals.exchanges.add(exchange)
        try:
            yield
            vitals.ended(exchange)
        finally:
            vitals.exchanges.discard(exchange)

    def learn(self, worker: Worker, capabilities: Iterable[str], digest: str | None = None) -> None:
        """Record what `worker` says it can do, and with whose keys and values it can go on: those of its digest."""
        vitals = self.vitals(worker)
        vitals.capabilities, vitals.digest = frozenset(capabilities), digest
        self._changed()

    def can(self, capability: Capability, *workers: Worker) -> bool:
        """Whether all of `workers` have said that they can do this."""
        return all(capability in self.vitals(worker).capabilities for worker in workers)

    def choose(
        self,
        role: Role,
        demand: Demand,
        tried: Collection[Worker] = (),
        *,
        partner: Role | Worker | None = None,
        with_room: bool = False,
    ) -> Worker | None:
        """Who serves a request in a role: somebody who is up, was not tried, and is not left alone for its failures.

        Args:
            role: `prefill` or `decode`; who does both decodes.
            demand: What is asked for.
            tried: Who is not asked.
            partner: Who has to go with the one that is chosen, or a role of which somebody should; where nobody does,
                any will do for a role, and none for a worker.
            with_room: Of decode workers, whether only one will do that has room; else one that has most, if any has.
                What is too large for each of them is left to the largest, to refuse it.

        Raises:
            NoRoomError: Nobody has room now.
        """
        candidates = self._ready.beside(role, tried, partner)
        if not candidates:
            return None
        chosen = self._policies[role].choose(candidates, demand)
        if role == "decode" and not self._has_room(chosen, demand):
            chosen = self._with_room(candidates, demand, with_room)
        if not chosen.breaker.is_closed:
            chosen.breaker.chosen(self._clock())
            self._changed()
        return chosen.worker

    def _has_room(self, vitals: Vitals, demand: Demand) -> bool:
        if self._max_in_flight is not None and vitals.load.requests >= self._max_in_flight:
            return False
        return vitals.capacity.has_room(vitals.load, demand.tokens)

    def _with_room(self, candidates: Sequence[Vitals], demand: Demand, must_have: bool) -> Vitals:
        if roomy := [vitals for vitals in candidates if self._has_room(vitals, demand)]:
            return self._policies["decode"].choose(roomy, demand)
        able = [vitals for vitals in candidates if vitals.capacity.could_hold(demand.tokens)]
        if not able:
            return max(candidates, key=lambda one: one.capacity.total or 0)
        if must_have:
            raise NoRoomError
        return max(able, key=lambda one: (one.capacity.left(one.load.tokens), -one.load.requests))

    def is_short(self, demand: Demand, decode: Worker) -> bool:
        """Whether a decode worker has so little to compute of a prompt that a hand-off would take longer."""
        if not self._short_tokens:
            return False
        return demand.prompt_tokens - self._cached_tokens(demand, decode) < self._short_tokens

    def sent(self, demand: Demand, worker: Worker) -> None:
        """Record who serves a request."""
        self._policy(worker).sent(demand, worker)

    def _cached_tokens(self, demand: Demand, worker: Worker) -> int:
        return self._policy(worker).cached_tokens(demand).get(worker, 0)

    def _policy(self, worker: Worker) -> Policy:
        return self._policies["prefill" if worker.role == "prefill" else "decode"]

    @property
    def in_turn(self) -> list[Worker]:
        """All who are up, those first who decode, for a question that is no work."""
        up = [worker for worker, vitals in self._vitals.items() if vitals.is_up]
        return sorted(up, key=lambda worker: worker.role == "prefill")

    def has_candidates(self, tried: Collection[Worker]) -> bool:
        """Whether `choose` would find anybody, of whatever role."""
        return any(self._ready.of(role, tried) for role in self._policies)

    def _changed(self) -> None:
        self._ready.look_again()
        self.on_change()

    def _forget(self, worker: Worker) -> None:
        self.vitals(worker).capacity.forget()
        self._policy(worker).forget(worker)
        self._changed()

    def require_open(self) -> None:
        """Refuse with 503 while the service is starting, or nobody at all is up.

        Raises:
            RequestError: The message names whom it waits for, or who is missing.
        """
        if not self.is_open:
            raise RequestError(
                f"the service is starting and waits for {', '.join(self.down) or 'the first hand-offs'}; "
                "try again shortly",
                status=503,
                code="not_ready",
            )
        if not any(vitals.is_up for vitals in self._vitals.values()):
            raise RequestError(
                f"no instance answers its health check for: {self._gaps()}; start it or try again shortly",
                status=503,
                code="not_ready",
            )

    def _gaps(self) -> str:
        names = {role: [worker.name for worker in self._vitals if worker.role == role] for role in self.missing}
        return "; ".join(f"{role} ({', '.join(found)})" for role, found in names.items()) or "there is none"
