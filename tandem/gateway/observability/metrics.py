"""What the gateway counts, for Prometheus; each gateway has a registry of its own.

Labels have few values: endpoints, outcomes, causes, kinds of routes, and the names of workers and keys. Their children
are kept, because looking one up costs more than counting.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from tandem.errors import RequestError
from tandem.gateway.observability.gauges import Gauges
from tandem.gateway.request.record import CLIENT_LEFT, Outcome, Record
from tandem.gateway.wire.exchange import Cause
from tandem.gateway.wire.worker import Worker

METRICS_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Where a gateway of several processes keeps what they count; prometheus_client reads this variable, too."""

Way = Literal["resume", "continue", "replay"]
"""How a stream goes on: with an instance of ours; with the tokens so far as a prompt; by asking for all of it again."""

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
GAPS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


def count_as(row: int) -> None:
    """Keep what is counted from now on by the row of this process: the next one in it goes on with the same files."""
    values.ValueClass = values.MultiProcessValue(lambda: row)  # type: ignore[no-untyped-call]


class GatewayMetrics:
    """The gateway's counters."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.gauges = Gauges(self.registry)
        self._in_flight = Gauge(
            "tandem_gateway_in_flight",
            "Requests being served.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self._requests = cache(
            self._counter("requests", "Requests by endpoint and outcome.", "endpoint", "outcome").labels
        )
        self._by_key = cache(self._counter("key_requests", "Requests let in, by the name of their key.", "key").labels)
        self._routes = cache(self._counter("routes", "Tries by the kind of their route.", "kind").labels)
        self._failures = self._counter(
            "worker_failures", "Legs that failed, by worker and what it did.", "worker", "cause"
        )
        self._retries = self._counter("retries", "Further tries, by the worker that failed.", "worker")
        self._hedges = self._counter("hedges", "Prefills asked beside one that was late.", "worker", "first")
        self._continuations = self._counter(
            "continuations", "Tries that went on with a stream after its first bytes.", "way"
        )
        self._events = self._counter("stream_events", "Events of streams that bring text, about one for each token.")
        self._tokens = cache(self._counter("tokens", "Tokens, where anybody has told how many.", "kind").labels)
        self.prefill_seconds = self._histogram("prefill_seconds", "Duration of the prefill leg.")
        self._ttft = self._histogram(
            "ttft_seconds", "From a streamed request's arrival to its first bytes to the client."
        )
        self._ttft_parts = cache(self._histogram("ttft_part_seconds", "Where that time went.", "part").labels)
        self.queue_seconds = self._histogram("queue_seconds", "Waits for room, of those who waited.")
        self._turned_away = self._counter("turned_away", "Requests refused because there was no room.", "reason")
        self._mean_gap = self._histogram(
            "itl_mean_seconds", "Inter-token latency: the mean of each stream.", buckets=GAPS
        )
        self._longest_gap = self._histogram(
            "itl_longest_seconds", "Inter-token latency: the longest of each stream.", buckets=GAPS
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"tandem_gateway_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str, buckets: Sequence[float] = SECONDS) -> Histogram:
        return Histogram(f"tandem_gateway_{name}", text, labels, buckets=buckets, registry=self.registry)

    @contextmanager
    def request(self, record: Record) -> Iterator[None]:
        """Count one request from here to the end of the block, and how it ended."""
        self._in_flight.inc()
        try:
            yield
        except BaseException as error:
            record.outcome, record.status = _outcome(error)
            raise
        finally:
            record.ended = time.monotonic()
            self._in_flight.dec()
            self._ended(record)

    def _ended(self, record: Record) -> None:
        self._requests(record.path, record.outcome).inc()
        if record.events:
            self._events.inc(record.events)
        for kind, count in record.tokens:
            self._tokens(kind).inc(count)
        if (mean := record.mean_gap_s) is not None:
            self._mean_gap.observe(mean)
            self._longest_gap.observe(record.longest_gap_s)

    def first_bytes(self, record: Record) -> None:
        """Count the first bytes of a stream, and where the time until then went."""
        if (ttft := record.ttft_s) is not None:
            self._ttft.observe(ttft)
        for part, seconds in record.parts.items():
            self._ttft_parts(part).observe(seconds)

    def failed(self, worker: Worker, cause: Cause) -> None:
        """Count a leg that `worker` failed."""
        self._failures.labels(worker.name, cause).inc()

    def retried(self, worker: Worker) -> None:
        """Count a further try, for what `worker` failed."""
        self._retries.labels(worker.name).inc()

    def hedged(self, late: Worker, *, won: bool) -> None:
        """Count a prefill that was asked beside one that was late.

        Args:
            late: Who was.
            won: Whether the other one's ticket came first.
        """
        self._hedges.labels(late.name, "other" if won else "late").inc()

    def turned_away(self, reason: str) -> None:
        """Count a request that was refused because there was no room."""
        self._turned_away.labels(reason).inc()

    def continued(self, way: Way) -> None:
        """Count a stream that goes on elsewhere."""
        self._continuations.labels(way).inc()

    def routed(self, kind: str) -> None:
        """Count a try, by the kind of its route."""
        self._routes(kind).inc()

    def asked(self, key: str) -> None:
        """Count a request that was let in by its key."""
        self._by_key(key).inc()

    def page(self) -> bytes:
        """The page a Prometheus server reads: of all processes of a gateway, whichever is asked."""
        registry = self.registry
        if METRICS_FOLDER in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        shown = CollectorRegistry()
        shown.register(Shown(registry, self.gauges))
        return generate_latest(shown)


class Shown(Collector):
    """What is shown of all metrics."""

    def __init__(self, registry: CollectorRegistry, gauges: Gauges) -> None:
        self._registry = registry
        self._gauges = gauges

    def describe(self) -> Iterable[Metric]:
        """Nothing: whoever registers it need not collect at that moment."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """All but what is gone."""
        return self._gauges.only_present(self._registry.collect())


def _outcome(error: BaseException) -> tuple[Outcome, int]:
    if isinstance(error, asyncio.CancelledError | ConnectionError):
        return "aborted", CLIENT_LEFT
    status = error.status if isinstance(error, RequestError) else 500
    return "refused" if status < 500 else "failed", status
