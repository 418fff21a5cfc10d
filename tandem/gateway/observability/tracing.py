"""Spans of requests, for OpenTelemetry; nothing of it is imported unless somebody wants them.

    request ── queue      waiting for a turn, where it waited
       ├────── prefill    each leg, with the worker's name; the worker is told of this span, and may add its own
       └────── decode

A client's trace goes on. Without tracing its `traceparent` is passed on as it came. Names of attributes are those of
OpenTelemetry's conventions for HTTP and for generative AI; what is ours begins with `tandem.`. No prompt, no answer and
no address is in them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from tandem.errors import RequestError, UsageError
from tandem.gateway.request.record import Record
from tandem.gateway.wire.exchange import WorkerError
from tandem.gateway.wire.worker import Worker

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL: Final = "http/protobuf"
INSTALL: Final = "run `pip install -e '.[otel]'` in tandem's folder"
FLUSH_S: Final = 2.0
"""For the last spans, when the gateway stops."""

log = logging.getLogger(__name__)


class Tracing:
    """Makes the spans of requests.

    Args:
        provider: Where they go.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("tandem.gateway")

    @classmethod
    def open(cls, endpoint: str | None, environment: Mapping[str, str]) -> Tracing | None:
        """As the options and OpenTelemetry's variables say; None where nobody wants spans.

        Args:
            endpoint: Of a collector that speaks OTLP over HTTP; None leaves it to the variables.
            environment: Of the process.

        Raises:
            UsageError: It is not installed and an option asks for it, or a protocol is asked for that is not spoken.
        """
        wanted = endpoint is not None or any(environment.get(name) for name in ENDPOINTS)
        off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
        if not wanted or off or environment.get("OTEL_TRACES_EXPORTER", "otlp") == "none":
            return None
        for name in PROTOCOLS:
            if environment.get(name, PROTOCOL) != PROTOCOL:
                raise UsageError(f"{name}={environment[name]}: only {PROTOCOL} is spoken; unset it, or set it to that")
        try:
            return cls(_provider(endpoint, environment))
        except ImportError:
            if endpoint is not None:
                raise UsageError(f"--otlp-endpoint: OpenTelemetry is not installed; {INSTALL}") from None
        log.warning("the environment asks for OpenTelemetry, which is not installed; %s", INSTALL)
        return None

    def begin(self, record: Record, method: str, headers: Mapping[str, str]) -> Trace:
        """A request comes in."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        sent = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        span = self._tracer.start_span(
            f"{method} {record.path}",
            context=TraceContextTextMapPropagator().extract(sent),
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": method,
                "http.route": record.path,
                "gen_ai.operation.name": "chat" if "chat" in record.path else "text_completion",
                "tandem.request.id": record.id,
            },
        )
        return Trace(self, record, span)

    def child(self, name: str, context: Context, **options: Any) -> Span:
        """A span within another one."""
        return self._tracer.start_span(name, context=context, **options)

    async def close(self) -> None:
        """Send what is left, if that is possible soon."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def finish() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # nobody waits any more
                loop.call_soon_threadsafe(done.set)

        # A thread that nobody waits for at the end of the process, either.
        threading.Thread(target=finish, daemon=True).start()
        try:
            await asyncio.wait_for(done.wait(), FLUSH_S)
        except TimeoutError:
            log.warning("OpenTelemetry's collector did not take the last spans in %g s", FLUSH_S)


class Trace:
    """Of one request, from its arrival to `end`."""

    def __init__(self, tracing: Tracing, record: Record, span: Span) -> None:
        from opentelemetry.trace import set_span_in_context

        self._tracing = tracing
        self._record = record
        self._span = span
        self._context = set_span_in_context(span)
        self._began = time.time_ns()

    @contextmanager
    def leg(self, name: str, worker: Worker, headers: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
        """A leg runs in the block; yields the headers for its worker, which is told of its span."""
        from opentelemetry.trace import SpanKind, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        attributes = {
            "tandem.worker": worker.name,
            "tandem.try": self._record.tries,
            "tandem.continuation": bool(self._record.continuations),
        }
        span = self._tracing.child(name, self._context, kind=SpanKind.CLIENT, attributes=attributes)
        told = {name: value for name, value in headers.items() if name not in ("traceparent", "tracestate")}
        TraceContextTextMapPropagator().inject(told, set_span_in_context(span))
        try:
            yield told
        except RequestError as error:
            _fail(span, error.cause if isinstance(error, WorkerError) else str(error.status))
            raise
        finally:
            span.end()

    def end(self) -> None:
        """The request is over, and its record whole."""
        record = self._record
        if record.queue_s:
            queue = self._tracing.child("queue", self._context, start_time=self._began)
            queue.end(self._began + int(record.queue_s * 1e9))
        told: dict[str, str | float | None] = {
            "http.response.status_code": record.status,
            "gen_ai.usage.input_tokens": record.prompt_tokens,
            "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
            "gen_ai.usage.output_tokens": record.answer_tokens,
            "tandem.outcome": record.outcome,
            "tandem.key": record.key,
            "tandem.route": record.served_by.get("X-Tandem-Route"),
            "tandem.ttft": record.ttft_s,
            "tandem.tries": record.tries,
            "tandem.continuations": record.continuations,
        }
        self._span.set_attributes({name: value for name, value in told.items() if value is not None})
        if record.outcome in ("failed", "broken"):
            _fail(self._span, record.cause or str(record.status))
        self._span.end()


def _fail(span: Span, kind: str) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR)


def _provider(endpoint: str | None, environment: Mapping[str, str]) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = "OTEL_SERVICE_NAME" in environment or "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    resource = Resource.create({} if named else {"service.name": "tandem-gateway"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(None if endpoint is None else f"{endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider
