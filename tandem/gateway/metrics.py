"""What the gateway counts, for Prometheus; each gateway has a registry of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tandem.errors import RequestError
from tandem.gateway.exchange import Cause
from tandem.gateway.worker import Worker

Outcome = Literal["ok", "refused", "failed", "broken", "aborted"]
"""Answered; refused with 4xx; failed with 5xx; a stream that broke off; the client went away."""

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


@dataclass
class Count:
    """One request being counted; whoever knows better than "no exception" sets its outcome."""

    outcome: Outcome = "ok"


class GatewayMetrics:
    """The gateway's counters."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "tandem_gateway_requests",
            "Requests by endpoint and outcome.",
            ("endpoint", "outcome"),
            registry=self.registry,
        )
        self._in_flight = Gauge("tandem_gateway_in_flight", "Requests being served.", registry=self.registry)
        self._failures = Counter(
            "tandem_gateway_worker_failures",
            "Legs that failed, by worker and what it did.",
            ("worker", "cause"),
            registry=self.registry,
        )
        self.prefill_seconds = Histogram(
            "tandem_gateway_prefill_seconds", "Duration of the prefill leg.", buckets=SECONDS, registry=self.registry
        )
        self.ttft_seconds = Histogram(
            "tandem_gateway_ttft_seconds",
            "From a streamed request's arrival to its first bytes to the client.",
            buckets=SECONDS,
            registry=self.registry,
        )

        self._retries = Counter(
            "tandem_gateway_retries", "Second tries, by the worker that failed.", ("worker",), registry=self.registry
        )
        self._continuations = Counter(
            "tandem_gateway_continuations",
            "Streams that went on with another worker after their first bytes.",
            registry=self.registry,
        )
        self._routes = Counter(
            "tandem_gateway_routes", "Tries by the kind of their route.", ("kind",), registry=self.registry
        )
        self._by_key = Counter(
            "tandem_gateway_key_requests",
            "Requests let in, by the name of their key.",
            ("key",),
            registry=self.registry,
        )

    @contextmanager
    def request(self, endpoint: str) -> Iterator[Count]:
        """Count one request from here to the end of the block, and how it ended."""
        count = Count()
        self._in_flight.inc()
        try:
            yield count
        except BaseException as error:
            count.outcome = _outcome(error)
            raise
        finally:
            self._in_flight.dec()
            self._requests.labels(endpoint, count.outcome).inc()

    def failed(self, worker: Worker, cause: Cause) -> None:
        """Count a leg that `worker` failed."""
        self._failures.labels(worker.name, cause).inc()

    def retried(self, worker: Worker) -> None:
        """Count a second try, for what `worker` failed."""
        self._retries.labels(worker.name).inc()

    def continued(self) -> None:
        """Count a stream that goes on elsewhere."""
        self._continuations.inc()

    def routed(self, kind: str) -> None:
        """Count a try, by the kind of its route."""
        self._routes.labels(kind).inc()

    def asked(self, key: str) -> None:
        """Count a request that was let in by its key."""
        self._by_key.labels(key).inc()

    def page(self) -> bytes:
        """The page a Prometheus server reads."""
        return generate_latest(self.registry)


def _outcome(error: BaseException) -> Outcome:
    if isinstance(error, asyncio.CancelledError | ConnectionError):
        return "aborted"
    return "refused" if isinstance(error, RequestError) and error.status < 500 else "failed"
