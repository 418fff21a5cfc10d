"""`/metrics` of an instance, in Prometheus' text format: the engine's counts, read when asked, and latencies."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tandem.engine.engine import Engine
from tandem.engine.sequence import ENDS

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class EngineCollector(Collector):
    """Turns an engine's counts into metrics at scrape time, so that a step pays nothing for them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """All metrics of the engine."""
        engine, stats, scheduler = self._engine, self._engine.stats, self._engine.scheduler
        size = engine.options.block_bytes
        counters = {
            "prompt_tokens_computed": (stats.prompt_tokens_computed, "Prompt tokens that went through this model"),
            "tokens_generated": (stats.tokens_generated, "Output tokens"),
            "engine_steps": (stats.steps, "Passes through the model"),
            "preemptions": (scheduler.preemptions, "Requests that gave their KV blocks back to be computed again"),
            "prefix_cache_queries": (scheduler.prefix_queries, "Tokens that admitted requests began with"),
            "prefix_cache_hits": (scheduler.prefix_hits, "Those of them whose KV blocks were known"),
            "prefix_cache_evictions": (engine.pool.evictions, "Known KV blocks that were given away"),
            "kv_bytes_sent": (stats.kv_blocks_sent * size, "KV bytes that other instances fetched from here"),
            "kv_bytes_received": (stats.kv_blocks_received * size, "KV bytes fetched from other instances"),
            "kv_transfers_sent": (stats.kv_transfers_sent, "KV hand-offs given"),
            "kv_transfers_received": (stats.kv_transfers_received, "KV hand-offs taken"),
            "kv_transfers_refused": (stats.kv_transfers_refused, "KV pulls refused before a block moved"),
            "kv_transfers_failed": (stats.kv_transfers_failed, "KV hand-offs that broke off"),
            "kv_leases_expired": (engine.tickets.expired, "KV tickets nobody used in time"),
            "kv_reservations_expired": (engine.reservations.expired, "KV reservations nobody used in time"),
        }
        for name, (value, text) in counters.items():
            yield CounterMetricFamily(f"tandem_{name}", text, value=value)
        gauges = {
            "requests_waiting": (len(scheduler.waiting), "Requests in the queue"),
            "requests_running": (len(scheduler.running), "Requests admitted"),
            "kv_blocks_total": (engine.pool.count, "KV blocks of this instance"),
            "kv_blocks_free": (engine.pool.free, "KV blocks nobody holds; some of them still known"),
            "kv_block_tokens": (engine.pool.block_size, "Tokens of a KV block"),
            "kv_blocks_known": (engine.pool.known, "KV blocks whose content can be shared"),
            "kv_leases": (len(engine.tickets), "KV tickets given and not used yet"),
            "kv_reservations": (len(engine.reservations), "KV reservations not used yet"),
        }
        for name, (value, text) in gauges.items():
            yield GaugeMetricFamily(f"tandem_{name}", text, value=value)
        ended = CounterMetricFamily("tandem_requests_ended", "Requests by how they ended", labels=["how"])
        for status in sorted(ENDS, key=lambda status: status.name):
            ended.add_metric([status.name.lower()], stats.ended[status])
        yield ended
        seconds = CounterMetricFamily(
            "tandem_engine_step_seconds",
            "Time in passes through the model, by whether they computed prompt tokens",
            labels=["phase"],
        )
        for phase, spent in stats.seconds.items():
            seconds.add_metric([phase], spent)
        yield seconds


class InstanceMetrics:
    """The registry of one instance."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(EngineCollector(engine))
        self.first_token = Histogram(
            "tandem_time_to_first_token_seconds",
            "From a request's arrival to its first token",
            buckets=SECONDS,
            registry=self._registry,
        )
        self.between_tokens = Histogram(
            "tandem_inter_token_seconds", "Between two tokens of one answer", buckets=SECONDS, registry=self._registry
        )

    def text(self) -> bytes:
        """What a scrape gets."""
        return generate_latest(self._registry)
