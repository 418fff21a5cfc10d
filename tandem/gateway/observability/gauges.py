"""How things stand, for Prometheus: set when they are asked for, so that no request pays for them.

Each of several processes sets its own before a page is made of them all: call `refresh` there once a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Gauge, Metric

from tandem.gateway.request.journal import Journal
from tandem.gateway.workers.budget import RetryBudget
from tandem.gateway.workers.pool import Pool

STATES: Final = {"closed": 0, "half-open": 1, "open": 2}
"""Of a breaker, as numbers."""


class Gauges:
    """The state of a gateway's parts.

    Args:
        registry: Where they are shown.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        # Every process sees the same of a worker; what is open with it is added up.
        self._up = self._gauge("worker_up", "1 for a worker that answers its health checks.", "mostrecent", "worker")
        self._breaker = self._gauge(
            "breaker_state", "A worker's breaker: 0 closed, 1 half-open, 2 open.", "mostrecent", "worker"
        )
        self._open = self._gauge("worker_in_flight", "Exchanges that are open with a worker.", "livesum", "worker")
        self._retrying = self._gauge("retries_in_flight", "Second tries that have not begun to answer.", "livesum")
        self._waiting = self._gauge("retries_waiting", "Requests that wait for room for a second try.", "livesum")
        self._journal = self._gauge("journal_bytes", "What is kept of open streams, to go on with them.", "livesum")
        self._queue = self._gauge("queue_length", "Requests that wait for room.", "livesum")
        self._kv_tokens = self._gauge("worker_kv_tokens", "A worker's room for tokens.", "mostrecent", "worker", "what")
        self._known: set[str] = set()

    def _gauge(self, name: str, text: str, mode: Literal["mostrecent", "livesum"], *labels: str) -> Gauge:
        return Gauge(f"tandem_gateway_{name}", text, labels, registry=self._registry, multiprocess_mode=mode)

    def refresh(self, pool: Pool, budget: RetryBudget, journals: Iterable[Journal], *, queue: int) -> None:
        """Set all of them to what holds now; `queue` requests wait for room."""
        self._queue.set(queue)
        self._retrying.set(budget.retrying)
        self._waiting.set(budget.waiting)
        self._journal.set(sum(journal.size for journal in journals))
        for worker in pool.workers:
            self._up.labels(worker.name).set(pool.is_up(worker))
            self._breaker.labels(worker.name).set(STATES[pool.breaker_state(worker)])
            vitals = pool.vitals(worker)
            self._open.labels(worker.name).set(len(vitals.exchanges))
            self._show_kv(worker.name, *vitals.capacity.shown(vitals.load))
        self._known = {worker.name for worker in pool.workers}

    def only_present(self, metrics: Iterable[Metric]) -> Iterator[Metric]:
        """A page's metrics without gauges of workers that are gone, which stay in what several processes share."""
        for metric in metrics:
            if metric.type == "gauge":
                metric.samples = [one for one in metric.samples if one.labels.get("worker", None) in self._shown]
            yield metric

    @property
    def _shown(self) -> set[str | None]:
        return {None, *self._known}

    def _show_kv(self, name: str, capacity: float, booked: float, others: float) -> None:
        for what, tokens in (("capacity", capacity), ("booked", booked), ("others", others)):
            self._kv_tokens.labels(name, what).set(tokens)
