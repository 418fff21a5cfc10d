"""What `/metrics` says after requests that went well and workers that failed, and that the guide says the same."""

from __future__ import annotations

import asyncio
import json
import re
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
from aiohttp import web
from fake_model import IDS, failing_after, freezes, model, resets
from fake_worker import (
    TICKET,
    Script,
    answers,
    chunk,
    early_ticket,
    never,
    stream,
    whole_with_ticket,
    with_ticket,
    without_done,
    words,
)
from gateway_rig import BODY, CHAT, EARLY, Rig, rigged, trial, until

from tandem.gateway.delivery import tries
from tandem.gateway.observability.access_log import fields_of
from tandem.gateway.request.record import Part, Record
from tandem.gateway.wire.exchange import Cause
from tandem.gateway.workers.patience import Patience

SHORT = Patience(suspect_seconds=0.1, probe_seconds=0.1)
GUIDE = Path(__file__).parents[2] / "docs" / "gateway.md"
STREAMED = BODY | {"stream": True}
PART = "tandem_gateway_ttft_part_seconds"


@pytest.fixture(autouse=True)
def without_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tries, "PAUSE_S", 0.01)


async def read(rig: Rig, body: dict[str, Any], path: str = "/v1/completions") -> bytes:
    async with rig.post(body, path) as response:
        return bytes(await response.read())


async def parts(rig: Rig) -> dict[str, float]:
    names = ("queue", "retry", "prefill", "transfer", "first_decode", "transfer_first_decode", "alone")
    found = {name: await rig.metric(f'{PART}_count{{part="{name}"}}') for name in names}
    return {name: count for name, count in found.items() if count}


@pytest.mark.parametrize("odd", [-1, 10**400])
def test_odd_counts_cost_no_answer(odd: int) -> None:
    usage = {"prompt_tokens": odd, "completion_tokens": odd, "prompt_tokens_details": {"cached_tokens": odd}}
    prefilled = {"choices": [{"finish_reason": "length"}], "kv_transfer_params": TICKET, "usage": usage}
    told = {"choices": [{"index": 0, "text": "Hello", "finish_reason": "stop"}], "usage": usage}

    @trial
    async def scenario() -> None:
        async with rigged(prefill=answers(200, prefilled), decode=answers(200, told)) as rig:
            async with rig.post(BODY) as response:
                assert response.status == 200
                assert (await response.json())["choices"] == told["choices"]
            assert await rig.metric('tandem_gateway_requests_total{outcome="ok"}') == 1
            assert await rig.metric("tandem_gateway_tokens_total") == 0

    scenario()


async def slow_prefill(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    await asyncio.sleep(0.2)
    return await whole_with_ticket(request, body)


async def slow_words(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
    told = [b'data: {"choices": []}\n\n'] * 4 + [chunk("", chat=False, end="stop")]
    response = await stream(request, told[:4])
    await asyncio.sleep(0.3)
    await response.write(told[4] + b"data: [DONE]\n\n")
    return response


async def words_that_tell_their_time(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
    await asyncio.sleep(0.1)
    headers = {"Content-Type": "text/event-stream", "Server-Timing": "decode;dur=40"}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    await response.write(chunk("", chat=False, end="stop") + b"data: [DONE]\n\n")
    return response


@trial
async def test_the_time_to_the_first_token_is_split() -> None:
    async with rigged(prefill=slow_prefill, decode=words_that_tell_their_time) as rig:
        await read(rig, STREAMED)
        assert await parts(rig) == {"prefill": 1, "transfer": 1, "first_decode": 1}
        total = await rig.metric("tandem_gateway_ttft_seconds_sum")
        assert total == pytest.approx(await rig.metric(f"{PART}_sum"), abs=0.05)
        assert await rig.metric(f'{PART}_sum{{part="prefill"}}') >= 0.2
        assert await rig.metric(f'{PART}_sum{{part="first_decode"}}') == pytest.approx(0.04)
        assert await rig.metric(f'{PART}_sum{{part="transfer"}}') >= 0.05
        await read(rig, BODY)
        assert await rig.metric("tandem_gateway_ttft_seconds_count") == 1
        assert await rig.metric("tandem_gateway_prefill_seconds_count") == 2


@trial
async def test_one_instance_that_does_both_has_one_part_more() -> None:
    async with rigged(prefill=()) as rig:
        await read(rig, STREAMED)
        assert await parts(rig) == {"alone": 1}


@trial
async def test_an_early_ticket_leaves_the_prefill_its_time() -> None:
    async def rest(_: web.Request, __: dict[str, Any]) -> None:
        await asyncio.sleep(0.2)

    async def later(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(0.6)
        return await words(request, body)

    async with rigged(prefill=early_ticket(rest), decode=later, capabilities=EARLY) as rig:
        await read(rig, STREAMED)
        assert await parts(rig) == {"prefill": 1, "transfer_first_decode": 1}
        assert await rig.metric(f'{PART}_sum{{part="prefill"}}') >= 0.2
        assert await rig.metric(f'{PART}_sum{{part="transfer_first_decode"}}') > 0.1


@trial
async def test_gaps_between_tokens_are_told_once_a_stream() -> None:
    async with rigged(decode=slow_words) as rig:
        await read(rig, STREAMED)
        assert await rig.metric("tandem_gateway_itl_mean_seconds_count") == 1
        assert 0.3 <= 4 * await rig.metric("tandem_gateway_itl_mean_seconds_sum") < 5
        assert 0.28 <= await rig.metric("tandem_gateway_itl_longest_seconds_sum") < 5
        assert await rig.metric("tandem_gateway_stream_events_total") == 5


@pytest.mark.parametrize("fields", [{}, {"stream_options": {"include_usage": True}}, {"n": 2}])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_events_that_bring_text_are_counted(path: str, fields: dict[str, Any]) -> None:
    @trial
    async def scenario() -> None:
        async with rigged(prefill=model, decode=model) as rig:
            await read(rig, (CHAT if "chat" in path else BODY) | {"stream": True} | fields, path)
            assert await rig.metric("tandem_gateway_stream_events_total") == len(IDS) * fields.get("n", 1)

    scenario()


CAUSES: dict[str, tuple[Script, Script]] = {
    "status_5xx": (answers(500, {}), words),
    "no_ticket": (answers(200, {"choices": []}), words),
    "bad_answer": (answers(200, []), words),
    "cut": (whole_with_ticket, without_done),
    "frozen": (never, words),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_failures_have_a_cause(cause: str) -> None:
    prefill, decode = CAUSES[cause]
    role = "prefill" if prefill is not whole_with_ticket else "decode"

    @trial
    async def scenario() -> None:
        pair = ([prefill, whole_with_ticket], words) if role == "prefill" else (whole_with_ticket, [decode, words])
        async with rigged(*pair, patience=SHORT, policy="round_robin") as rig:
            rig.prefills[0].frozen = cause == "frozen"
            await read(rig, STREAMED)
            told = f'tandem_gateway_worker_failures_total{{worker="{role}-0"'
            assert await rig.metric(f'{told},cause="{cause}"}}') == await rig.metric(f"{told}}}") == 1

    scenario()


@trial
async def test_a_worker_that_is_gone_is_unreachable_and_one_that_hangs_up_resets() -> None:
    async with rigged(decode=[words, words], policy="round_robin") as rig:
        rig.decode.dead = True
        await read(rig, BODY)
        assert await rig.metric('tandem_gateway_worker_failures_total{worker="decode-0",cause="reset"}') == 1
        assert await rig.metric('tandem_gateway_retries_total{worker="decode-0"}') == 1
        assert await rig.metric("tandem_gateway_retries_in_flight") == 0


@pytest.mark.parametrize(("capabilities", "way"), [(("release", "resume"), "resume"), ((), "continue")])
def test_continuations_are_counted_by_their_way(capabilities: tuple[str, ...], way: str) -> None:
    @trial
    async def scenario() -> None:
        async with rigged(model, (model, model), capabilities, policy="round_robin") as rig:
            rig.decode.script = failing_after(3, resets)
            await read(rig, STREAMED)
            told = "tandem_gateway_continuations_total"
            assert await rig.metric(f'{told}{{way="{way}"}}') == await rig.metric(told) == 1

    scenario()


@trial
async def test_a_gap_between_two_workers_is_the_longest() -> None:
    async with rigged(model, (model, model), ("resume",), patience=SHORT, policy="round_robin") as rig:
        rig.decode.script = failing_after(3, freezes(lambda: rig.decode))
        await read(rig, STREAMED)
        assert await rig.metric("tandem_gateway_itl_longest_seconds_sum") > 0.2


@trial
async def test_gauges_say_how_things_stand() -> None:
    async with rigged(decode=[words, words], policy="round_robin") as rig:
        assert await rig.metric('tandem_gateway_worker_up{worker="decode-0"}') == 1
        rig.decode.script = answers(500, {})
        for _ in range(6):
            await read(rig, BODY)
        assert await rig.metric('tandem_gateway_breaker_state{worker="decode-0"}') == 2
        assert await rig.metric('tandem_gateway_breaker_state{worker="decode-1"}') == 0
        rig.gateway.pool.mark(rig.gateway.pool.workers[1], up=False)
        assert await rig.metric('tandem_gateway_worker_up{worker="decode-0"}') == 0


@trial
async def test_what_is_open_is_counted_and_then_gone() -> None:
    async with rigged(decode=slow_words) as rig:
        async with rig.post(STREAMED) as response:
            await response.content.readline()
            assert await rig.metric("tandem_gateway_in_flight") == 1
            assert await rig.metric('tandem_gateway_worker_in_flight{worker="decode-0"}') == 1
            assert await rig.metric("tandem_gateway_journal_bytes") > 20
        for name in ("in_flight", "worker_in_flight", "journal_bytes"):
            await until(partial(_is_zero, rig, f"tandem_gateway_{name}"))


async def _is_zero(rig: Rig, name: str) -> bool:
    return await rig.metric(name) == 0


COUNTS = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}


def counted(cached: int) -> dict[str, Any]:
    return COUNTS | {"prompt_tokens_details": {"cached_tokens": cached}}


def prefilling(cached: int, *, early: bool) -> Script:
    """A prefill instance that tells what it found, and, early, does so only where it is asked to."""

    async def whole(_: web.Request, __: dict[str, Any]) -> web.StreamResponse:
        choice = {"index": 0, "text": "a", "finish_reason": "length"}
        return web.json_response({"choices": [choice], "kv_transfer_params": TICKET, "usage": counted(cached)})

    async def streamed(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        assert body["stream_options"] == {"include_usage": True}
        last = b"data: " + json.dumps({"choices": [], "usage": counted(cached)}).encode() + b"\n\n"
        return await stream(request, [with_ticket(None), with_ticket("length"), last, b"data: [DONE]\n\n"])

    return streamed if early else whole


async def pulling(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """A decode instance that counts what it pulls as cached."""
    usage = counted(8)
    if not body.get("stream"):
        return web.json_response({"id": "x", "choices": [{"text": "ab"}], "usage": usage})
    told = [
        {"choices": [{"text": "a"}]},
        {"choices": [{"text": "b", "finish_reason": "stop"}]},
        {"choices": [], "usage": usage},
    ]
    events = [b"data: " + json.dumps({"id": "x"} | one).encode() + b"\n\n" for one in told]
    return await stream(request, [*events, b"data: [DONE]\n\n"])


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
def test_cached_tokens_are_those_of_the_prefill(*, streamed: bool, early: bool) -> None:
    body = STREAMED | {"stream_options": {"include_usage": True}} if streamed else BODY

    @trial
    async def scenario() -> None:
        capabilities = EARLY if early else ()
        async with rigged(prefilling(3, early=early), pulling, capabilities) as rig:
            answer = await read(rig, body)
            found = re.findall(rb'"cached_tokens": ?(\d+)', answer)
            assert found == [b"3"]
            assert b'"completion_tokens":2' in answer
            for kind, count in {"prompt": 9, "cached": 3, "answer": 2}.items():
                assert await rig.metric(f'tandem_gateway_tokens_total{{kind="{kind}"}}') == count

    scenario()


@trial
async def test_an_instance_that_does_both_is_believed() -> None:
    async with rigged((), pulling) as rig:
        assert b'"cached_tokens": 8' in await read(rig, BODY)


@trial
async def test_the_guide_names_every_metric_and_none_else() -> None:
    section = GUIDE.read_text().split("\n## Metrics\n")[1].split("\n## ")[0]
    documented = {
        name.removesuffix("_total"): labels
        for name, labels in re.findall(r"^\| `(tandem_gateway_\w+)(?:\{([\w,]+)\})?` \|", section, re.MULTILINE)
    }
    async with rigged() as rig:
        registry = rig.gateway.metrics.registry
        made = {one.name for one in registry.collect()}
        labels = {one._name: ",".join(one._labelnames) for one in registry._collector_to_names}
    assert set(documented) == made
    assert documented == labels


@trial
async def test_what_the_guide_asks_prometheus_for_is_there() -> None:
    asked = set(re.findall(r"(tandem_gateway_\w+)[{}\[ ]", GUIDE.read_text()))
    async with rigged() as rig:
        made = {name for one in rig.gateway.metrics.registry._collector_to_names.values() for name in one}
    assert asked
    assert asked <= made


def test_the_guide_names_every_cause_and_every_part() -> None:
    guide = GUIDE.read_text()
    for kind, head in ((Cause, "| `cause` |"), (Part, "| `part` ")):
        table = guide.split(head)[1].split("\n\n")[0]
        assert set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\|[^|]*\|", table, re.M)))) == set(get_args(kind))


def test_the_guide_names_every_field_of_the_access_log() -> None:
    table = GUIDE.read_text().split("\n## Access log\n")[1].split("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\|[^|]*\|", table, re.M)))) - {"field"}
    record = Record(id="i", path="p", cause="cut", begun=0.0, prompt_tokens=1, cached_tokens=1, answer_tokens=1)
    made = {name for name, _ in fields_of(record)} | {"time", "id", "key", "client", "method", "path", "status"}
    assert named == made | {"total_ms", "request_bytes", "answer_bytes"}
