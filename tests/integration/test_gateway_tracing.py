"""Traces of a gateway in front of fake workers: spans, whose children they are, and what workers are told of them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest
from aiohttp import web
from fake_model import failing_after, model, resets
from fake_worker import answers, never, words
from gateway_rig import BODY, Rig, rigged, trial, until

pytest.importorskip("opentelemetry.sdk", reason="needs the extra `otel`")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tandem.errors import UsageError
from tandem.gateway.delivery import tries
from tandem.gateway.observability import tracing
from tandem.gateway.observability.tracing import Tracing
from tandem.gateway.observability.visibility import Visibility

STREAMED = BODY | {"stream": True, "stream_options": {"include_usage": True}}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECRET = "a-secret-that-no-span-may-hold"


@pytest.fixture(autouse=True)
def without_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tries, "PAUSE_S", 0.01)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Where the spans of gateways go."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_provider", lambda *_: provider)
    yield exporter
    provider.shutdown()


TRACED = {"visibility": Visibility(otlp_endpoint="http://127.0.0.1:1")}


async def post(rig: Rig, body: Any, **headers: str) -> None:
    async with rig.post(body, headers=headers) as response:
        await response.read()


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def told(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def as_parent(span: ReadableSpan) -> str:
    context = cast(Any, span.context)
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-01"


def test_a_clients_trace_goes_on_to_the_workers(spans: InMemorySpanExporter) -> None:
    @trial
    async def scenario() -> None:
        async with rigged(prefill=model, decode=model, **TRACED) as rig:
            await post(rig, STREAMED, traceparent=PARENT, tracestate="a=b", **{"X-Request-Id": "my.id-1"})
            found = by_name(spans)
            request, prefill, decode = found["POST /v1/completions"], found["prefill"], found["decode"]
            assert as_parent(request)[3:35] == PARENT[3:35]
            assert request.parent is not None
            assert f"{request.parent.span_id:016x}" == PARENT[36:52]
            for leg, worker in ((prefill, rig.prefill), (decode, rig.decode)):
                assert leg.parent == request.context
                [headers] = worker.headers
                assert headers["traceparent"] == as_parent(leg)
                assert headers["tracestate"] == "a=b"
            assert told(prefill) == {"tandem.worker": "prefill-0", "tandem.try": 1, "tandem.continuation": False}
            attributes = told(request)
            assert attributes.pop("tandem.ttft") > 0
            assert attributes == {
                "http.request.method": "POST",
                "http.route": "/v1/completions",
                "http.response.status_code": 200,
                "gen_ai.operation.name": "text_completion",
                "gen_ai.usage.input_tokens": 2,
                "gen_ai.usage.output_tokens": 7,
                "tandem.request.id": "my.id-1",
                "tandem.outcome": "ok",
                "tandem.route": "apart",
                "tandem.tries": 1,
                "tandem.continuations": 0,
            }
            assert all(span.status.is_unset for span in found.values())

    scenario()


def test_a_continuation_is_a_leg_more(spans: InMemorySpanExporter) -> None:
    @trial
    async def scenario() -> None:
        async with rigged(model, (model, model), ("resume",), policy="round_robin", **TRACED) as rig:
            rig.decode.script = failing_after(3, resets)
            await post(rig, STREAMED)
            legs = [span for span in spans.get_finished_spans() if span.name == "decode"]
            assert [told(span)["tandem.continuation"] for span in legs] == [False, True]
            assert [told(span).get("error.type") for span in legs] == ["cut", None]
            assert [span.status.is_ok or span.status.is_unset for span in legs] == [False, True]
            assert told(by_name(spans)["POST /v1/completions"])["tandem.continuations"] == 1

    scenario()


@pytest.mark.parametrize(("status", "outcome", "error"), [(400, "refused", None), (500, "failed", "status_5xx")])
def test_a_request_that_fails_says_so(
    spans: InMemorySpanExporter, status: int, outcome: str, error: str | None
) -> None:
    @trial
    async def scenario() -> None:
        script = answers(status, {"error": {"message": SECRET}})
        async with rigged(script, script, **TRACED) as rig:
            await post(rig, BODY | {"prompt": SECRET, "user": SECRET}, Authorization=SECRET)
            request = by_name(spans)["POST /v1/completions"]
            attributes = told(request)
            assert (attributes["tandem.outcome"], attributes.get("error.type")) == (outcome, error)
            assert attributes["http.response.status_code"] == (400 if status == 400 else 502)
            everything = "".join(span.to_json() for span in spans.get_finished_spans())
            for hidden in (SECRET, "127.0.0.1"):
                assert hidden not in everything

    scenario()


def test_a_client_that_leaves_ends_its_spans(spans: InMemorySpanExporter) -> None:
    @trial
    async def scenario() -> None:
        async with rigged(decode=never, **TRACED) as rig:
            asking = asyncio.create_task(post(rig, BODY))
            await rig.decode.arrived.wait()
            asking.cancel()

            async def ended() -> bool:
                return len(spans.get_finished_spans()) == 3

            await until(ended)
            assert told(by_name(spans)["POST /v1/completions"])["tandem.outcome"] == "aborted"

    scenario()


def test_without_tracing_nothing_of_it_is_imported() -> None:
    code = "import sys, tandem.gateway.server; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_tracing_the_header_passes() -> None:
    @trial
    async def scenario() -> None:
        async with rigged() as rig:
            await post(rig, BODY, traceparent=PARENT)
            assert [headers["traceparent"] for headers in rig.decode.headers] == [PARENT]

    scenario()


def test_spans_reach_a_collector() -> None:
    got = asyncio.Queue[bytes]()

    async def collect(request: web.Request) -> web.Response:
        await got.put(await request.read())
        return web.Response()

    @trial
    async def scenario() -> None:
        app = web.Application()
        app.router.add_post("/v1/traces", collect)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        where = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        async with rigged(decode=words, visibility=Visibility(otlp_endpoint=where)) as rig:
            await post(rig, BODY)
        sent = ExportTraceServiceRequest.FromString(await got.get())
        [resource] = sent.resource_spans
        assert ("service.name", "tandem-gateway") in {
            (one.key, one.value.string_value) for one in resource.resource.attributes
        }
        names = {span.name for scope in resource.scope_spans for span in scope.spans}
        assert names == {"POST /v1/completions", "prefill", "decode"}
        await runner.cleanup()

    scenario()


def test_a_collector_that_is_gone_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracing, "FLUSH_S", 0.1)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "2")
    before = set(threading.enumerate())

    @trial
    async def scenario() -> None:
        async with rigged(**TRACED) as rig:
            await post(rig, BODY)

    scenario()
    assert "collector did not take the last spans in 0.1 s" in caplog.text
    for thread in set(threading.enumerate()) - before:
        thread.join()  # it draws random numbers, which a test of Hypothesis that came next would take for its own


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_nobody_who_does_not_ask_is_traced(environment: dict[str, str]) -> None:
    assert Tracing.open(None, environment) is None


def test_a_protocol_that_is_not_spoken_is_refused() -> None:
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    with pytest.raises(UsageError, match="OTEL_EXPORTER_OTLP_PROTOCOL=grpc: only http/protobuf is spoken"):
        Tracing.open(None, environment)


def test_what_is_not_installed_is_asked_for_by_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def provider(*_: Any) -> TracerProvider:
        raise ImportError

    monkeypatch.setattr(tracing, "_provider", provider)
    with pytest.raises(UsageError, match="--otlp-endpoint: OpenTelemetry is not installed"):
        Tracing.open("http://x", {})
    assert Tracing.open(None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}) is None
    assert "pip install -e '.[otel]'" in caplog.text
