"""The workers the gateway knows, how each is doing, and whose turn it is."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Literal

from tandem.errors import RequestError
from tandem.gateway.exchange import Exchange
from tandem.gateway.vitals import Vitals
from tandem.gateway.worker import Worker
from tandem.protocol.identity import Role

Capability = Literal["early_ticket", "release", "resume"]
"""Of `protocol.identity.CAPABILITIES`, what the gateway makes use of."""


class Pool:
    """Round robin over the workers of each role that are up and do not fail again and again.

    Args:
        workers: All there will be; each counts as down until `mark` says otherwise.
        is_open: Whether requests are taken as soon as somebody is up; else only once this is set.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, workers: Sequence[Worker], *, is_open: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.workers = tuple(workers)
        self.is_open = is_open
        self._clock = clock
        self._rings: dict[Role, deque[Worker]] = {}
        for worker in self.workers:
            self._rings.setdefault(worker.role, deque()).append(worker)
        self._vitals = {worker: Vitals() for worker in self.workers}
        self._capabilities: dict[str, frozenset[str]] = {}

    @classmethod
    def of(cls, prefill: Sequence[str], decode: Sequence[str], *, is_open: bool = True) -> Pool:
        """A pool over base URLs, named by role and position; without prefill URLs the decode ones do both."""
        role: Role = "decode" if prefill else "both"
        prefills = [Worker(name=f"prefill-{i}", url=url, role="prefill") for i, url in enumerate(prefill)]
        decodes = [Worker(name=f"decode-{i}", url=url, role=role) for i, url in enumerate(decode)]
        return cls(prefills + decodes, is_open=is_open)

    @property
    def apart(self) -> bool:
        """Whether prefill and decode are served by different workers."""
        return "prefill" in self._rings

    @property
    def missing(self) -> tuple[Role, ...]:
        """The roles of which no worker is up."""
        return tuple(role for role, ring in self._rings.items() if not any(self.is_up(worker) for worker in ring))

    @property
    def down(self) -> tuple[str, ...]:
        """The names of the workers that are not up."""
        return tuple(worker.name for worker in self.workers if not self.is_up(worker))

    @property
    def pairs(self) -> tuple[tuple[Worker, Worker], ...]:
        """Every way a request may go: prefill and decode worker."""
        return tuple(product(self._rings.get("prefill", ()), self._rings.get("decode", ())))

    def vitals(self, worker: Worker) -> Vitals:
        """How a worker is doing."""
        return self._vitals[worker]

    def is_up(self, worker: Worker) -> bool:
        """Whether `worker` answered its last health checks."""
        return self._vitals[worker].is_up

    def mark(self, worker: Worker, *, up: bool) -> None:
        """Record what a health check found; what is open with a worker that is down goes on elsewhere, if it can."""
        vitals = self._vitals[worker]
        vitals.is_up = up
        if not up and self.has_others(worker):
            vitals.lose("does not answer its health checks")

    def has_others(self, worker: Worker) -> bool:
        """Whether anybody else is up, so that what is open with a worker could go on elsewhere."""
        return any(self.is_up(other) for other in self.workers if other is not worker)

    def failed(self, worker: Worker) -> None:
        """Record that a worker failed a request."""
        self._vitals[worker].breaker.failed(self._clock())

    @contextmanager
    def open(self, exchange: Exchange) -> Iterator[None]:
        """Keep account of an exchange while the block runs; one that ends well speaks for its worker."""
        vitals = self._vitals[exchange.worker]
        vitals.exchanges.add(exchange)
        try:
            yield
            vitals.ended(exchange)
        finally:
            vitals.exchanges.discard(exchange)

    def learn(self, worker: Worker, capabilities: Iterable[str]) -> None:
        """Record what `worker` says it can do."""
        self._capabilities[worker.name] = frozenset(capabilities)

    def can(self, capability: Capability, *workers: Worker) -> bool:
        """Whether all of `workers` have said that they can do this."""
        return all(capability in self._capabilities.get(worker.name, ()) for worker in workers)

    def choose(self, role: Role, tried: Collection[Worker] = ()) -> Worker | None:
        """The next worker of `role` that is up, was not tried, and is not left alone for its failures."""
        worker = next(iter(self._candidates(role, tried)), None)
        if worker is not None:
            self._rings[role].remove(worker)
            self._rings[role].append(worker)
            self._vitals[worker].breaker.chosen(self._clock())
        return worker

    @property
    def somebody(self) -> Worker:
        """Somebody who is up, a decode worker if there is one, for a question that is no work."""
        return next(worker for worker in reversed(self.workers) if self.is_up(worker))

    def has_candidates(self, tried: Collection[Worker]) -> bool:
        """Whether `choose` would find anybody, of whatever role."""
        return any(self._candidates(role, tried) for role in self._rings)

    def _candidates(self, role: Role, tried: Collection[Worker]) -> list[Worker]:
        ready = self._not_left_alone([worker for worker in self._rings.get(role, ()) if self.is_up(worker)])
        return [worker for worker in ready if worker not in tried]

    def _not_left_alone(self, up: list[Worker]) -> list[Worker]:
        """Who may get requests: at least half of those who are up, whatever their breakers say."""
        now = self._clock()
        allowed = [worker for worker in up if self._vitals[worker].breaker.allows(now)]
        return allowed if 2 * len(allowed) >= len(up) else up

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
        if len(self.down) == len(self.workers):
            gaps = "; ".join(f"{role} ({', '.join(w.name for w in self._rings[role])})" for role in self.missing)
            raise RequestError(
                f"no instance answers its health check for: {gaps}; start it or try again shortly",
                status=503,
                code="not_ready",
            )
