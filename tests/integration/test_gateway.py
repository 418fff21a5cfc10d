"""The gateway, in front of fake workers that speak real HTTP."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import re
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from typing import Any

import aiohttp
import openai
import pytest
import uvloop
from aiohttp import web
from fake_worker import (
    TICKET,
    WORDS,
    Script,
    answers,
    answers_late,
    by_leg,
    cut_short,
    early_ticket,
    failing_prefill,
    failing_stream,
    never,
    running,
    stream,
    whole_with_ticket,
    without_done,
    words,
    words_then_never,
)
from gateway_rig import BODY, CHAT, EARLY, JSON, SOON_S, Rig, rigged, trial, until

from tandem.errors import UsageError
from tandem.gateway.config import GatewayConfig
from tandem.gateway.delivery import tries, worker_stream
from tandem.gateway.delivery.prefill import Prefill
from tandem.gateway.delivery.tries import ROUNDS
from tandem.gateway.door.keys import Key, Keys, digest_of, new_key
from tandem.gateway.front import Api
from tandem.gateway.request.journal import Journal
from tandem.gateway.request.limits import Limits
from tandem.gateway.server import LAST_WORDS_S, Gateway
from tandem.gateway.wire.exchange import Exchange
from tandem.gateway.wire.peer import Peers
from tandem.gateway.workers import budget, stalls
from tandem.gateway.workers.health import TIMEOUT_S, HealthWatch
from tandem.gateway.workers.vitals import MOST_WITHOUT_TICKET


@pytest.fixture(autouse=True)
def without_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tries, "PAUSE_S", 0.01)


@trial
async def test_both_legs_get_what_they_need() -> None:
    asked = BODY | {"stream": True, "stream_options": {"include_usage": True}, "min_tokens": 5, "odd": {"é": 1e-3}}
    async with rigged() as rig:
        async with rig.post(
            asked | {"kv_transfer_params": {"remote_host": "evil"}},
            headers={"X-Request-Id": "my.id-1", "Authorization": "Bearer k", "traceparent": "00-1-2-03"},
        ) as response:
            text = await response.text()
        assert response.status == 200
        assert text.endswith("data: [DONE]\n\n")
        assert [response.headers[f"X-{n}"] for n in ("Tandem-Prefill", "Tandem-Decode", "Request-Id")] == [
            "prefill-0",
            "decode-0",
            "my.id-1",
        ]
        [sent] = rig.prefill.bodies
        kv = sent.pop("kv_transfer_params")
        nulls = ("remote_engine_id", "remote_block_ids", "remote_host", "remote_port")
        assert (kv["do_remote_decode"], kv["do_remote_prefill"]) == (True, False)
        assert all(kv[name] is None for name in nulls)
        ours = {"seed": sent["seed"]}  # with a field that nobody knows, the answer may have to be written again
        assert sent == BODY | {"stream": False, "max_tokens": 1, "min_tokens": 1, "odd": {"é": 1e-3}} | ours
        assert rig.decode.bodies == [asked | {"kv_transfer_params": TICKET, "return_token_ids": True} | ours]
        for headers in (*rig.prefill.headers, *rig.decode.headers):
            assert headers["X-Request-Id"] == "my.id-1"
            assert headers["Authorization"] == "Bearer k"
            assert headers["traceparent"] == "00-1-2-03"
        assert rig.prefill.released.empty()
        assert await rig.metric('tandem_gateway_requests_total{endpoint="/v1/completions",outcome="ok"}') == 1
        assert await rig.metric("tandem_gateway_prefill_seconds_count") == 1
        assert await rig.metric("tandem_gateway_ttft_seconds_count") == 1
        assert await rig.metric("tandem_gateway_in_flight") == 0


@trial
async def test_a_whole_answer_loses_its_ticket_and_an_insane_request_id_is_replaced() -> None:
    async with rigged() as rig:
        async with rig.post(BODY, headers={"X-Request-Id": "a b"}) as response:
            answer = await response.json()
        assert answer["choices"][0]["text"] == "".join(WORDS)
        assert "kv_transfer_params" not in answer
        assert re.fullmatch("[0-9a-f]{32}", response.headers["X-Request-Id"])
        assert rig.prefill.headers[0]["X-Request-Id"] == rig.decode.headers[0]["X-Request-Id"]


@trial
async def test_workers_take_turns() -> None:
    served = []
    async with rigged(decode=(words, words)) as rig:
        for _ in range(4):
            async with rig.post(BODY) as response:
                served.append(response.headers["X-Tandem-Decode"])
    assert served == ["decode-0", "decode-1", "decode-0", "decode-1"]


@trial
async def test_one_instance_that_does_both() -> None:
    async with rigged(prefill=(), decode=words) as rig:
        async with rig.post(CHAT | {"kv_transfer_params": {}}, "/v1/chat/completions") as response:
            assert response.status == 200
        names = [response.headers[f"X-Tandem-{what}"] for what in ("Prefill", "Decode", "Route")]
        assert names == ["decode-0", "decode-0", "both"]
        assert rig.decode.bodies == [CHAT]
        async with rig.http.get(rig.url + "/v1/models") as response:
            assert (await response.json())["data"][0]["id"] == "m"


@trial
async def test_an_answer_that_ended_with_its_first_token_needs_no_ticket() -> None:
    ended = {"choices": [{"finish_reason": "stop"}], "kv_transfer_params": None}
    async with rigged(prefill=answers(200, ended)) as rig:
        async with rig.post(BODY) as response:
            assert response.status == 200
        assert rig.decode.bodies == [BODY]


def test_a_prefill_instance_that_gives_no_ticket_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with rigged(prefill=answers(200, {"choices": [{"finish_reason": "length"}]})) as rig:
            async with rig.post(BODY) as response:
                assert (response.status, response.headers["X-Tandem-Route"]) == (200, "decode-alone")
            assert await rig.metric('tandem_gateway_worker_failures_total{worker="prefill-0"}') == 1

    with caplog.at_level("INFO", "tandem.gateway"):
        uvloop.run(scenario())
    assert "prefill-0 prefilled but gave no ticket; start it with role prefill" in caplog.text


@pytest.mark.parametrize("ticket", [[1], "x", 5, False])
@pytest.mark.parametrize("capabilities", [("release",), ("release", "ticket_reuse")])
def test_a_ticket_that_cannot_be_read_makes_another_instance_prefill(
    ticket: Any, capabilities: tuple[str, ...]
) -> None:
    @trial
    async def scenario() -> None:
        odd = answers(200, {"choices": [{"finish_reason": "length"}], "kv_transfer_params": ticket})
        async with rigged(prefill=(odd, whole_with_ticket), capabilities=capabilities) as rig:
            async with rig.post(BODY) as response:
                assert (response.status, response.headers["X-Tandem-Prefill"]) == (200, "prefill-1")
            failures = 'tandem_gateway_worker_failures_total{worker="prefill-0",cause="bad_answer"}'
            assert await rig.metric(failures) == 1

    scenario()


@trial
async def test_a_request_that_is_not_handed_over_is_no_failure() -> None:
    """A beam search of vLLM's brings no ticket."""
    no_ticket = answers(200, {"choices": [{"finish_reason": "length"}]})

    async def prefill(request: Any, body: dict[str, Any]) -> Any:
        return await (no_ticket if body.get("use_beam_search") else whole_with_ticket)(request, body)

    async def ask_for(rig: Rig, **fields: Any) -> Any:
        async with rig.post(BODY | fields) as response:
            assert response.status == 200
        return rig.decode.bodies[-1].get("kv_transfer_params")

    async with rigged(prefill=prefill) as rig:
        for _ in range(3):
            assert await ask_for(rig) == TICKET
            for _ in range(MOST_WITHOUT_TICKET):
                assert await ask_for(rig, use_beam_search=True) is None
        await assert_failures(rig, prefill=0, decode=0)
        assert await ask_for(rig, use_beam_search=True) is None
        await assert_failures(rig, prefill=1, decode=0)


@trial
async def test_what_prefill_takes_is_no_silence_of_decode() -> None:
    times: list[float] = []

    async def prefill(request: Any, body: dict[str, Any]) -> Any:
        await asyncio.sleep(0.1)
        times.append(time.monotonic())
        return await whole_with_ticket(request, body)

    async def decode(request: Any, body: dict[str, Any]) -> Any:
        [exchange] = rig.gateway.pool.vitals(rig.gateway.pool.workers[1]).exchanges
        times.append(exchange.silence.since)
        return await words(request, body)

    async with rigged(prefill=prefill, decode=decode) as rig, rig.post(BODY) as response:
        assert response.status == 200
    answered, waited_since = times
    assert answered < waited_since


@trial
async def test_client_gone_during_prefill() -> None:
    async with rigged(prefill=never) as rig:
        await go_away(rig, rig.prefill.arrived)
        await asyncio.wait_for(rig.prefill.aborted.wait(), SOON_S)
        assert rig.decode.bodies == []
        assert await rig.metric('tandem_gateway_requests_total{endpoint="/v1/completions",outcome="aborted"}') == 1


@trial
async def test_client_gone_before_decode_took_the_ticket() -> None:
    async with rigged(decode=never) as rig:
        await go_away(rig, rig.decode.arrived)
        await asyncio.wait_for(rig.decode.aborted.wait(), SOON_S)
        assert await asyncio.wait_for(rig.prefill.released.get(), SOON_S) == TICKET["remote_request_id"]


async def late_ticket(request: Any, body: dict[str, Any]) -> Any:
    """Answers, whole or streamed, when the client has gone already."""
    await asyncio.sleep(0.1)
    return await (early_ticket(at_once) if body["stream"] else whole_with_ticket)(request, body)


async def at_once(_: Any, __: dict[str, Any]) -> Any:
    """The rest of a prefill that takes no time."""


@pytest.mark.parametrize("capabilities", [("release",), EARLY])
def test_a_ticket_on_the_wire_is_released_when_the_client_has_gone(capabilities: tuple[str, ...]) -> None:
    async def scenario() -> None:
        async with rigged(prefill=late_ticket, capabilities=capabilities) as rig:
            await go_away(rig, rig.prefill.arrived)
            assert await asyncio.wait_for(rig.prefill.released.get(), SOON_S) == TICKET["remote_request_id"]
            assert rig.decode.bodies == []

    uvloop.run(scenario())


@trial
async def test_a_worker_without_capabilities_sees_a_closed_connection_and_no_other_route() -> None:
    async with rigged(prefill=late_ticket, capabilities=()) as rig:
        await go_away(rig, rig.prefill.arrived)
        await asyncio.wait_for(rig.prefill.aborted.wait(), SOON_S)
    async with rigged(decode=answers(500, {}), capabilities=()) as rig:
        async with rig.post(BODY) as response:
            assert (response.status, response.headers["X-Tandem-Route"]) == (200, "prefill-alone")
        await rig.gateway._legs.finish()
        assert rig.prefill.released.empty()


@trial
async def test_decode_begins_while_the_prefill_goes_on() -> None:
    async with rigged(capabilities=EARLY) as rig:

        async def until_decode_arrived(_: Any, __: dict[str, Any]) -> Any:
            await rig.decode.arrived.wait()

        rig.prefill.script = early_ticket(until_decode_arrived)
        async with rig.post(BODY) as response:
            assert (await response.json())["choices"][0]["text"] == "".join(WORDS)
        [sent] = rig.prefill.bodies
        assert (sent["stream"], sent["max_tokens"]) == (True, 1)
        assert rig.decode.bodies == [BODY | {"kv_transfer_params": TICKET}]
        await rig.gateway._legs.finish()
        assert not rig.prefill.aborted.is_set()
        assert rig.prefill.released.empty()
        assert await rig.metric("tandem_gateway_prefill_seconds_count") == 1


@trial
async def test_client_gone_while_both_legs_are_under_way() -> None:
    async with rigged(prefill=early_ticket(never), decode=never, capabilities=EARLY) as rig:
        await go_away(rig, rig.decode.arrived)
        for worker in (rig.prefill, rig.decode):
            await asyncio.wait_for(worker.aborted.wait(), SOON_S)
        assert await asyncio.wait_for(rig.prefill.released.get(), SOON_S) == TICKET["remote_request_id"]


@trial
async def test_decode_that_fails_ends_the_prefill_under_way() -> None:
    prefill = by_leg(early_ticket(never), words)
    async with rigged(prefill=prefill, decode=answers(500, {}), capabilities=EARLY) as rig:
        async with rig.post(BODY) as response:
            assert (response.status, response.headers["X-Tandem-Route"]) == (200, "prefill-alone")
        await asyncio.wait_for(rig.prefill.aborted.wait(), SOON_S)
        assert await asyncio.wait_for(rig.prefill.released.get(), SOON_S) == TICKET["remote_request_id"]


@trial
async def test_a_prefill_that_fails_under_way_is_the_cause() -> None:
    async with rigged(capabilities=EARLY) as rig:

        async def break_off(request: Any, _: dict[str, Any]) -> Any:
            await rig.decode.arrived.wait()
            request.transport.abort()

        async def fail_after(request: Any, body: dict[str, Any]) -> Any:
            await rig.prefill.aborted.wait()
            await asyncio.sleep(0.05)
            return await answers(502, {})(request, body)

        rig.prefill.script, rig.decode.script = early_ticket(break_off), by_leg(never, words, decode=fail_after)
        async with rig.post(BODY) as response:
            assert (response.status, response.headers["X-Tandem-Route"]) == (200, "decode-alone")
        await assert_failures(rig, prefill=1, decode=0)


@pytest.mark.parametrize(("status", "seen"), [(500, 200), (503, 200), (422, 422)])
def test_decode_that_gave_its_ticket_back_is_the_cause_and_not_the_prefill(status: int, seen: int) -> None:
    async def scenario() -> None:
        refusal = {"error": {"message": "decode-0 will not", "type": "t", "param": None, "code": None}}
        async with rigged(decode=answers_late(status, refusal), capabilities=EARLY) as rig:
            released = {"message": "the KV ticket was released", "code": "ticket_released"}
            rig.prefill.script = by_leg(failing_prefill(rig.decode.arrived, released), words)
            async with rig.post(BODY) as response:
                assert response.status == seen
                assert response.headers["X-Tandem-Route"] == ("prefill-alone" if seen == 200 else "apart")
            await assert_failures(rig, prefill=0, decode=int(seen == 200))

    uvloop.run(asyncio.wait_for(scenario(), 15))


@trial
async def test_each_choice_and_each_prompt_has_legs_of_its_own() -> None:
    async with rigged(prefill=early_ticket(at_once), capabilities=EARLY) as rig:
        async with rig.post(BODY | {"n": 2, "best_of": 2, "prompt": ["a", "b"]}) as response:
            answer = await response.json()
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
        assert answer["usage"] == {"prompt_tokens": 6, "completion_tokens": 16, "total_tokens": 22}
        for worker in (rig.prefill, rig.decode):
            assert sorted(body["prompt"] for body in worker.bodies) == ["a", "a", "b", "b"]
            assert not any(body.keys() & {"n", "best_of"} for body in worker.bodies)
        await rig.gateway._legs.finish()
        assert rig.prefill.released.empty()


def test_decode_gets_what_is_left_of_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    @trial
    async def scenario() -> None:
        async with rigged(prefill=late_ticket) as rig:
            async with rig.post(BODY | {"deadline_seconds": 60}) as response:
                assert response.status == 200
            assert rig.prefill.bodies[0]["deadline_seconds"] == 60
            assert 0 < rig.decode.bodies[0]["deadline_seconds"] <= 59.9
            async with rig.post(BODY | {"deadline_seconds": 0.05}) as response:
                text = await assert_error(response, 504, "deadline_seconds: the 0.05 seconds are over")
            assert json.loads(text)["error"]["code"] == "deadline_exceeded"
            assert len(rig.decode.bodies) == 1
            assert await asyncio.wait_for(rig.prefill.released.get(), SOON_S) == TICKET["remote_request_id"]

    monkeypatch.setattr(stalls, "PERIOD_S", 10.0)  # the ticket comes before anybody looks at the clock
    scenario()


def test_a_ticket_of_another_engine_that_nobody_will_use_is_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    @trial
    async def scenario() -> None:
        asked = BODY | {"deadline_seconds": 0.05, "stream": True, "min_tokens": 5, "temperature": 0}
        async with rigged(prefill=late_ticket, capabilities=()) as rig:
            async with rig.post(asked) as response:
                await assert_error(response, 504, "deadline_seconds")
            await rig.gateway._legs.finish()
            last = BODY | {"stream": False, "min_tokens": 1, "max_tokens": 1, "temperature": 0}
            assert rig.decode.bodies == [last | {"kv_transfer_params": TICKET}]
            await nothing_is_left(rig)

    monkeypatch.setattr(stalls, "PERIOD_S", 10.0)  # the ticket comes before anybody looks at the clock
    scenario()


@trial
async def test_so_is_one_whose_decode_instance_cannot_be_reached() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        async with rigged(decode=(words, words), capabilities=()) as rig:
            gone = rig.gateway.pool.workers[1]
            peer = rig.gateway._peers.at(gone.url)
            peer._port = nobody.getsockname()[1]
            peer.close()
            async with rig.post(BODY) as response:
                assert response.status == 200
            await rig.gateway._legs.finish()
            assert len(rig.prefill.bodies) == 2
            assert sorted(body["max_tokens"] for body in rig.decodes[1].bodies) == [1, 8]


@pytest.mark.parametrize("failing", [answers(500, {}), cut_short])
def test_one_that_a_decode_instance_may_have_is_shown_to_nobody_else(failing: Script) -> None:
    async def scenario() -> None:
        async with rigged(decode=(failing, words), capabilities=()) as rig:
            for _ in range(2):
                async with rig.post(BODY) as response:
                    assert response.status == 200
            await rig.gateway._legs.finish()
            assert [body["max_tokens"] for body in rig.decodes[1].bodies] == [8, 8]

    uvloop.run(asyncio.wait_for(scenario(), 15))


async def nothing_is_left(rig: Rig) -> None:
    """Both legs are given up, and nobody is to blame."""
    await rig.gateway._legs.finish()
    assert not any(rig.gateway.pool.vitals(worker).exchanges for worker in rig.gateway.pool.workers)
    await assert_failures(rig, prefill=0, decode=0)


@pytest.mark.parametrize("streams", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_the_gateway_itself_keeps_the_deadline(role: str, streams: bool) -> None:
    async def scenario() -> None:
        async with rigged(**{role: never}) as rig:
            began = time.monotonic()
            async with rig.post(BODY | {"deadline_seconds": 0.3, "stream": streams}) as response:
                text = await assert_error(response, 504, "deadline_seconds: the 0.3 seconds are over")
            assert json.loads(text)["error"]["code"] == "deadline_exceeded"
            assert 0.3 <= time.monotonic() - began < 5
            await asyncio.wait_for(getattr(rig, role).aborted.wait(), SOON_S)
            await nothing_is_left(rig)

    uvloop.run(asyncio.wait_for(scenario(), 15))


@trial
async def test_a_deadline_that_is_over_in_the_middle_of_a_stream_is_its_last_event() -> None:
    async with rigged(decode=words_then_never) as rig:
        async with rig.post(BODY | {"deadline_seconds": 0.3, "stream": True}) as response:
            *events, last = (await response.read()).strip().split(b"\n\n")
        assert events
        assert json.loads(last.strip().removeprefix(b"data: "))["error"]["code"] == "deadline_exceeded"
        await asyncio.wait_for(rig.decode.aborted.wait(), SOON_S)
        await nothing_is_left(rig)


def test_a_deadline_holds_while_room_for_another_try_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AT_LEAST", "SHARE"):
        monkeypatch.setattr(budget, name, 0)

    async def scenario() -> None:
        async with rigged(prefill=(), decode=(answers(500, {}),) * 2) as rig:
            async with rig.post(BODY | {"deadline_seconds": 0.2}) as response:
                await assert_error(response, 504, "deadline_seconds")
            assert sum(len(worker.bodies) for worker in rig.decodes) == 1

    uvloop.run(asyncio.wait_for(scenario(), 15))


@trial
async def test_an_instance_that_gave_up_at_the_deadline_has_not_failed() -> None:
    async def give_up(request: Any, body: dict[str, Any]) -> Any:
        await asyncio.sleep(0.05)
        return await answers(504, {})(request, body)

    async with rigged(prefill=give_up) as rig:
        async with rig.post(BODY | {"deadline_seconds": 0.05}) as response:
            await assert_error(response, 504, "deadline_seconds")
        assert await rig.metric('tandem_gateway_worker_failures_total{worker="prefill-0"}') == 0


LATE = {"message": "the request's deadline_seconds are over; allow it more time", "code": "deadline_exceeded"}


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_deadline_that_an_instance_found_over_is_told_in_its_words(role: str) -> None:
    """By its own clock: as the gateway sees it, there is a minute left."""

    async def scenario() -> None:
        said = {"error": LATE | {"type": "server_error", "param": None}}
        async with rigged(**{role: answers(504, said)}) as rig:
            async with rig.post(BODY | {"deadline_seconds": 60}) as response:
                text = await assert_error(response, 504, LATE["message"])
            assert json.loads(text)["error"]["code"] == "deadline_exceeded"
            assert await rig.metric(f'tandem_gateway_worker_failures_total{{worker="{role}-0"}}') == 0

    uvloop.run(asyncio.wait_for(scenario(), 15))


@trial
async def test_a_deadline_that_ends_a_prefill_under_way_is_told_in_its_words() -> None:
    async with rigged(decode=answers_late(502, {}), capabilities=EARLY) as rig:
        rig.prefill.script = failing_prefill(rig.decode.arrived, LATE)
        async with rig.post(BODY | {"deadline_seconds": 60}) as response:
            await assert_error(response, 504, LATE["message"])
        assert await rig.metric('tandem_gateway_worker_failures_total{worker="prefill-0"}') == 0


@trial
async def test_any_other_error_of_a_prefill_under_way_is_its_failure() -> None:
    decode = by_leg(never, answers(502, {}), decode=answers_late(502, {}))
    async with rigged(decode=decode, capabilities=EARLY) as rig:
        said = {"message": "at 10.0.0.9: no", "code": 500}
        rig.prefill.script = by_leg(failing_prefill(rig.decode.arrived, said), answers(500, {"error": said}))
        async with rig.post(BODY) as response:
            assert "10.0.0.9" not in await assert_error(response, 502, "decode-0 answered with status 502")
        await assert_failures(rig, prefill=ROUNDS, decode=ROUNDS)


@trial
async def test_a_worker_that_comes_back_is_asked_anew_what_it_can() -> None:
    async with rigged(capabilities=()) as rig:
        pool = rig.gateway.pool
        watch = HealthWatch(pool, Peers(), 1)
        for healthy, capabilities in ((True, ()), (False, EARLY), (True, EARLY)):
            rig.prefill.healthy, rig.prefill.capabilities = healthy, capabilities
            await watch.check()
            assert pool.is_up(pool.workers[0])
            assert pool.can("early_ticket", pool.workers[0]) == (healthy and bool(capabilities))
        assert not pool.can("early_ticket", *pool.workers)


@trial
async def test_who_does_not_answer_holds_up_nobody_elses_health_check() -> None:
    async with rigged(health_period_s=60) as rig:
        pool = rig.gateway.pool
        prefill, decode = pool.workers
        rig.prefill.frozen, rig.decode.healthy = True, False
        watch = asyncio.create_task(HealthWatch(pool, Peers(), 0.02).run())

        async def is_down() -> bool:
            return not pool.is_up(decode)

        await asyncio.wait_for(until(is_down), 2 * TIMEOUT_S)  # three checks; one of the other takes TIMEOUT_S
        assert pool.is_up(prefill)
        watch.cancel()
        await asyncio.wait([watch])


def test_instances_that_do_not_go_together_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with rigged(capabilities=EARLY) as rig:
            rig.prefill.said, rig.decode.said = {"role": "decode", "digest": "d1"}, {"role": "both", "digest": "d2"}
            watch = HealthWatch(rig.gateway.pool, Peers(), 1)
            for healthy in (True, False, True):
                rig.prefill.healthy = healthy
                await watch.check()

    caplog.set_level("WARNING", "tandem.gateway.workers.health")
    uvloop.run(scenario())
    swapped, differ = sorted(record.getMessage() for record in caplog.records)[::-1]
    assert swapped.startswith("prefill-0: was given with --prefill, but its own role is decode")
    assert re.match("(prefill-0 and decode-0|decode-0 and prefill-0): differ in model", differ)


@trial
async def test_client_gone_in_the_middle_of_a_stream() -> None:
    async with rigged(decode=words_then_never) as rig:
        async with rig.post(BODY | {"stream": True}) as response:
            assert b"Hel" in await response.content.readany()
            response.close()
        await asyncio.wait_for(rig.decode.aborted.wait(), SOON_S)
        assert rig.prefill.released.empty()


@trial
async def test_a_refusal_of_either_leg_reaches_the_client_as_it_is() -> None:
    said = {"error": {"message": "max_tokens: too large", "type": "invalid_request_error", "param": "p", "code": "c"}}
    async with rigged(prefill=answers(400, said)) as rig, rig.post(BODY) as response:
        assert (response.status, await response.json()) == (400, said)
        assert response.headers["X-Tandem-Prefill"] == "prefill-0"
    async with rigged(decode=answers(422, said)) as rig:
        async with rig.post(BODY) as response:
            assert (response.status, await response.json()) == (422, said)
        assert await asyncio.wait_for(rig.prefill.released.get(), SOON_S) == TICKET["remote_request_id"]


@trial
async def test_a_refusal_says_nothing_of_where_instances_are() -> None:
    said = {"error": {"message": "h at fd00::17", "kv_transfer_params": TICKET}, "kv_transfer_params": TICKET}
    challenge = 'Bearer realm="http://10.0.0.1:5/"'

    async def refuses(_: Any, __: dict[str, Any]) -> Any:
        return web.json_response(said, status=401, headers={"WWW-Authenticate": challenge})

    async with rigged(decode=refuses) as rig, rig.post(BODY) as response:
        assert (response.status, await response.json()) == (401, {"error": {"message": "h at (address)"}})
        assert response.headers["WWW-Authenticate"] == 'Bearer realm="(address)"'

    async def mumbles(_: Any, __: dict[str, Any]) -> Any:
        return web.Response(text='no "kv_transfer_params": "decode-a"', status=400)

    async with rigged(decode=mumbles) as rig:
        async with rig.post(BODY) as response:
            assert response.status == 200, "prefill serves alone"
        assert await rig.metric('tandem_gateway_worker_failures_total{worker="decode-0",cause="bad_answer"}') == 1


@trial
async def test_a_refusal_of_many_words_keeps_its_status_alone() -> None:
    async def repeats(_: Any, __: dict[str, Any]) -> Any:
        return web.Response(text="::" * 2**17 + "!", status=422)

    async with rigged(decode=repeats) as rig, rig.post(BODY) as response:
        await assert_error(response, 422, f"refused the request with status 422 and {2**18 + 1} bytes of words")


@pytest.mark.parametrize("said", ['{"kv_transfer_params":1,,}', '{"kv_transfer_params":1, "x":"\xff"}'])
def test_a_stream_whose_ticket_cannot_be_taken_out_is_a_bad_answer(said: str) -> None:
    async def spoilt(request: Any, _: dict[str, Any]) -> Any:
        return await stream(request, [f"data: {said}\n\ndata: [DONE]\n\n".encode("latin-1")])

    async def scenario() -> None:
        async with rigged(decode=[spoilt, words]) as rig:
            async with rig.post(BODY | {"stream": True}) as response:
                assert (response.status, (await response.read()).count(b"[DONE]")) == (200, 1)
            bad = 'tandem_gateway_worker_failures_total{worker="decode-0",cause="bad_answer"}'
            assert await rig.metric(bad) == 1

    uvloop.run(scenario())


@trial
async def test_workers_that_all_fail_are_tried_again_and_then_named_but_not_their_addresses() -> None:
    async with rigged(prefill=answers(500, {}), decode=answers(500, {})) as rig, rig.post(BODY) as response:
        assert "127.0.0.1" not in await assert_error(response, 502, "decode-0 answered with status 500")
        assert response.headers["X-Tandem-Decode"] == "decode-0"
        await assert_failures(rig, prefill=ROUNDS, decode=ROUNDS)
    async with rigged(prefill=by_leg(whole_with_ticket, answers(503, {})), decode=answers(503, {})) as rig:
        async with rig.post(BODY) as response:
            await assert_error(response, 503, "prefill-0 answered with status 503")
        await assert_failures(rig, prefill=ROUNDS, decode=ROUNDS)
        for _ in range(ROUNDS):
            assert await asyncio.wait_for(rig.prefill.released.get(), SOON_S) == TICKET["remote_request_id"]


@trial
async def test_a_dead_worker_is_replaced_and_then_missed() -> None:
    async with rigged(prefill=by_leg(whole_with_ticket, words), health_period_s=0.1) as rig:
        rig.decode.dead = True
        async with rig.post(BODY) as response:
            assert (response.status, response.headers["X-Tandem-Route"]) == (200, "prefill-alone")
        assert await asyncio.wait_for(rig.prefill.released.get(), SOON_S) == TICKET["remote_request_id"]
        await until(partial(is_at, rig, 200, "degraded", ["decode"]))
        async with rig.post(BODY) as response:
            assert (response.status, response.headers["X-Tandem-Route"]) == (200, "prefill-alone")
        assert len(rig.prefill.bodies) == 3
        rig.prefill.dead = True
        await until(partial(is_at, rig, 503, "unavailable", ["prefill", "decode"]))
        async with rig.post(BODY) as response:
            await assert_error(response, 503, "prefill (prefill-0); decode (decode-0)")


@pytest.mark.parametrize("script", [cut_short, without_done])
def test_a_broken_stream_with_which_nobody_can_go_on_ends_with_an_error_event(script: Script) -> None:
    async def scenario() -> None:
        async with rigged(decode=script) as rig:
            async with rig.post(BODY | {"stream": True}) as response:
                events = [line for line in (await response.read()).split(b"\n") if line]
            assert [json.loads(event.removeprefix(b"data: ")).keys() for event in events][-1] == {"error"}
            assert len(events) == 2
            assert b"no other can go on with it: its worker told no token ids" in events[-1]
            broken = 'tandem_gateway_requests_total{endpoint="/v1/completions",outcome="broken"}'
            assert await rig.metric(broken) == 1

    uvloop.run(scenario())


@pytest.mark.parametrize(("api", "path"), [("openai", "/v1/completions"), ("vllm", "/generate")])
def test_a_bug_in_the_middle_of_a_stream_is_told_and_logged(
    api: Api, path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        body = {"prompt": "hi", "stream": True}
        async with rigged(api=api) as rig, rig.post(body, path) as response:
            assert response.status == 200
            last = re.split(rb"[\n\0]+", (await response.read()).strip(b"\n\0"))[-1]
            assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "internal_error"
        assert "what nobody foresaw" in caplog.text

    pass_on, lines_told = Journal.pass_on, itertools.count()

    def fails_late(journal: Journal, lines: bytes) -> bytes:
        if next(lines_told) == 1:
            raise LookupError("what nobody foresaw")
        return pass_on(journal, lines)

    monkeypatch.setattr(Journal, "pass_on", fails_late)
    uvloop.run(scenario())


def test_a_bug_in_a_prefill_leg_is_told_and_is_no_missing_ticket(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with rigged() as rig:
            async with rig.post(BODY) as response:
                await assert_error(response, 500, "its log says why")
            assert rig.decode.bodies == []

    async def fails(_: Prefill, __: Exchange) -> None:
        raise LookupError("what nobody foresaw")

    monkeypatch.setattr(Prefill, "_read", fails)
    uvloop.run(scenario())


@pytest.mark.parametrize(
    ("error", "reason", "failures"),
    [
        (LATE, LATE["message"], 0),
        ({"message": "rank 1 at 10.0.0.9 died", "code": 500}, "the instance that wrote this answer is gone", 1),
    ],
)
def test_a_stream_that_its_worker_gave_up_ends_with_one_error(error: Any, reason: str, failures: int) -> None:
    """The worker's own `[DONE]`, which other engines send after an error, does not make it whole."""

    async def scenario() -> None:
        async with rigged(decode=failing_stream(error)) as rig:
            async with rig.post(BODY | {"stream": True}) as response:
                text = (await response.read()).decode()
            first, last = (json.loads(line.removeprefix("data: ")) for line in text.split("\n") if line)
            assert (first["choices"][0]["text"], last["error"]["message"][: len(reason)]) == ("Hel", reason)
            broken = 'tandem_gateway_requests_total{endpoint="/v1/completions",outcome="broken"}'
            assert await rig.metric(broken) == 1
            assert await rig.metric('tandem_gateway_worker_failures_total{worker="decode-0"}') == failures

    uvloop.run(scenario())


@trial
async def test_refusals_of_the_gateway_itself() -> None:
    async with rigged(limits=Limits(max_body_bytes=2000)) as rig:
        async with rig.http.get(rig.url + "/v1/nope") as response:
            there = "/health, /metrics, /openapi.json, /v1/chat/completions, /v1/completions, /v1/models"
            await assert_error(response, 404, f"/v1/nope: no such endpoint; there are {there}")
        async with rig.http.get(rig.url + "/v1/completions") as response:
            await assert_error(response, 405, "use POST")
            assert response.headers["Allow"] == "POST"
        async with rig.post(BODY | {"prompt": "x" * 3000}) as response:
            await assert_error(response, 413, "the body is larger than 2000 bytes; send a shorter prompt")
        for raw, reason in ((b"[1]", "must be a JSON object"), (b"{", "not valid JSON"), (b"", "not valid JSON")):
            async with rig.http.post(rig.url + "/v1/completions", data=raw, headers=JSON) as response:
                await assert_error(response, 400, reason)
        for wrong in ({"n": 0}, {"n": 129}, {"n": 65, "prompt": ["a", "b"]}):
            async with rig.post(BODY | wrong) as response:
                await assert_error(response, 400, f"n: {wrong['n']} answers")
        for path in ("/v1/completions", "/v1/nope"):
            async with rig.post(BODY, path, headers={"Expect": "foo"}) as response:
                await assert_error(response, 417, "Expect: nothing but 100-continue is understood")
        assert rig.prefill.bodies == []


def test_a_body_that_cannot_be_unpacked_is_no_error_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    @trial
    async def scenario() -> None:
        async with rigged() as rig:
            packed = {**JSON, "Content-Encoding": "gzip"}
            async with rig.http.post(rig.url + "/v1/completions", data=b"abc", headers=packed) as response:
                await assert_error(response, 400, "the body cannot be read")
            await until(lambda: said("the rest of a body cannot be read"))

    async def said(line: str) -> bool:
        return line in caplog.text

    with caplog.at_level("INFO"):
        scenario()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@trial
async def test_a_large_prompt_passes() -> None:
    prompt = "x" * (8 * 2**20)
    async with rigged() as rig:
        raw = io.BytesIO(json.dumps(BODY | {"prompt": prompt}).encode())
        async with rig.http.post(rig.url + "/v1/completions", data=raw, headers=JSON) as response:
            assert response.status == 200
        assert rig.decode.bodies[0]["prompt"] == prompt


@trial
async def test_a_stream_arrives_while_it_is_written() -> None:
    async with rigged(decode=words_then_never) as rig, rig.post(BODY | {"stream": True}) as response:
        assert json.loads((await response.content.readline()).removeprefix(b"data: "))["choices"][0]["text"] == "Hel"


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_line_without_end_is_a_bad_answer_and_another_one_serves(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_stream, "LONGEST_LINE", 2**20)
    capabilities = EARLY if role == "prefill" else ("release",)

    async def endless(request: Any, _: dict[str, Any]) -> Any:
        response = await stream(request, [b"data: "])
        while True:
            await response.write(b"x" * 2**16)

    async def scenario() -> None:
        good = early_ticket(at_once) if role == "prefill" else words
        async with rigged(**{role: [endless, good]}, capabilities=capabilities) as rig:
            async with rig.post(BODY | {"stream": True}) as response:
                assert (response.status, (await response.read()).count(b"[DONE]")) == (200, 1)
            bad = f'tandem_gateway_worker_failures_total{{worker="{role}-0",cause="bad_answer"}}'
            assert await rig.metric(bad) == 1

    uvloop.run(scenario())


@trial
async def test_a_list_of_models_is_only_asked_for_with_get() -> None:
    async with rigged() as rig, rig.http.head(rig.url + "/v1/models") as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET")


@trial
async def test_a_request_before_the_workers_are_up() -> None:
    async with rigged(health_period_s=0.1) as rig:
        for worker in (rig.prefill, rig.decode):
            worker.healthy = False
        await until(partial(is_at, rig, 503, "unavailable", ["prefill", "decode"]))
        async with rig.post(BODY) as response:
            await assert_error(response, 503, "prefill (prefill-0); decode (decode-0)")
        assert response.headers["Retry-After"] == "1"
        assert rig.prefill.bodies == rig.decode.bodies == []
        rig.decode.healthy = True
        await until(partial(is_at, rig, 200, "degraded", ["prefill"]))
        async with rig.post(BODY) as response:
            assert (response.status, response.headers["X-Tandem-Route"]) == (200, "decode-alone")
        rig.prefill.healthy = True
        await until(partial(is_at, rig, 200, "ok", []))


@trial
async def test_nothing_waits_for_a_fuller_packet() -> None:
    async with rigged() as rig:
        async with rig.post(BODY | {"stream": True}) as response:
            await response.read()
        [connection] = rig.gateway._runner.server.connections
        sock = connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@trial
async def test_the_official_client() -> None:
    async with rigged() as rig, openai.AsyncOpenAI(base_url=rig.url + "/v1", api_key="k", max_retries=0) as client:
        text = "".join(WORDS)
        assert (await client.completions.create(**BODY)).choices[0].text == text
        assert (await client.chat.completions.create(**CHAT)).choices[0].message.content == text
        pieces = [piece.choices[0].text async for piece in await client.completions.create(**BODY, stream=True)]
        assert pieces == list(WORDS)
        chat = await client.chat.completions.create(**CHAT, stream=True)
        assert [piece.choices[0].delta.content async for piece in chat] == list(WORDS)
        assert [model.id async for model in client.models.list()] == ["m"]
        assert [choice.text for choice in (await client.completions.create(**BODY, n=2)).choices] == [text] * 2
        rig.decode.script = cut_short
        with pytest.raises(openai.APIError, match="no other can go on with it"):
            [piece async for piece in await client.completions.create(**BODY, stream=True)]
        rig.decode.script = rig.prefill.script = answers(500, {})
        with pytest.raises(openai.InternalServerError, match="decode-0"):
            await client.completions.create(**BODY)


@trial
async def test_a_used_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"port {port} on 127\.0\.0\.1 is in use.*--port"):
            await Gateway(GatewayConfig(decode=("http://127.0.0.1:1",), port=port)).start()


@trial
async def test_stop_aborts_what_outlasts_the_grace() -> None:
    async with rigged(prefill=never) as rig:
        asked = asyncio.create_task(ask(rig))
        await rig.prefill.arrived.wait()
        await rig.gateway.stop()
        await asyncio.wait_for(rig.prefill.aborted.wait(), SOON_S)
        assert await asked == 503
        await rig.gateway.start()  # for the rig to stop


@pytest.mark.parametrize(("api", "path"), [("openai", "/v1/completions"), ("vllm", "/generate")])
def test_a_stream_that_outlasts_the_grace_ends_with_an_error_event(api: Api, path: str) -> None:
    @trial
    async def scenario() -> None:
        async with rigged(decode=words_then_never, api=api) as rig:
            async with rig.post({"prompt": "hi", "stream": True}, path) as response:
                await response.content.readany()
                began = time.monotonic()
                await rig.gateway.stop()
                assert time.monotonic() - began < LAST_WORDS_S
                last = re.split(rb"[\n\0]+", (await response.read()).strip(b"\n\0"))[-1]
            assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "stopping"
            await asyncio.wait_for(rig.decode.aborted.wait(), SOON_S)
            await rig.gateway.start()  # for the rig to stop

    scenario()


def test_the_command_runs_chats_and_stops() -> None:
    async def scenario() -> None:
        async with running(whole_with_ticket) as p, running(words) as d:
            command = [sys.executable, "-m", "tandem", "gateway", "--prefill", p.url, "--decode", d.url, "--port", "0"]
            process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
            assert process.stdout is not None
            line = (await process.stdout.readline()).decode()
            assert "prefill-0, decode-0" in line
            url = line.split()[1].removesuffix("/v1")
            assert await said("chat", url, "--message", "hi", "--message", "more") == ("".join(WORDS) + "\n") * 2
            assert [len(body["messages"]) for body in d.bodies] == [1, 3]
            assert d.bodies[0]["max_tokens"] == 256
            typed = await said("chat", url, "--system", "Be brief.", typed="hi\n/new\nhi\n/quit\n")
            assert typed.count("".join(WORDS)) == 2
            assert [len(body["messages"]) for body in d.bodies[2:]] == [2, 2]
            assert d.bodies[2]["messages"][0] == {"role": "system", "content": "Be brief."}
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
            assert time.monotonic() - started < 2
            assert f"{url}: no service answers there" in await said("chat", url, "--message", "hi", code=1)

    uvloop.run(asyncio.wait_for(scenario(), 30))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"decode": ()}, "--decode"),
        ({"decode": ("localhost:1",)}, "decode: 'localhost:1' is not"),
        ({"decode": ("http://h:99999",)}, "decode: 'http://h:99999' is not"),
        ({"decode": ("http://h:1/v1",)}, "write http://HOST:PORT"),
        ({"decode": ("http://user:secret@h:1",)}, "decode: an instance's URL holds a user; write http://HOST:PORT"),
        ({"decode": ("http://h:1",), "prefill": ("http://h:1/",)}, "given 2 times"),
        ({"decode": ("http://h:1",), "port": 70000}, "port: 70000"),
        ({"decode": ("http://h:1",), "short_tokens": -1}, "--short-prompt-tokens"),
        ({"decode": ("http://h:1",), "workers": 0}, "--workers"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=re.escape(reason)):
        GatewayConfig(**options)


async def ask(rig: Rig) -> int:
    async with rig.post(BODY) as response:
        await response.read()
        return int(response.status)


async def go_away(rig: Rig, when: asyncio.Event) -> None:
    """Ask, and hang up when the event is set."""
    asked = asyncio.create_task(ask(rig))
    await asyncio.wait_for(when.wait(), 5)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked


async def assert_failures(rig: Rig, *, prefill: int, decode: int) -> None:
    """So often each is to blame."""
    for name, count in (("prefill-0", prefill), ("decode-0", decode)):
        assert await rig.metric(f'tandem_gateway_worker_failures_total{{worker="{name}"}}') == count, name


async def is_at(rig: Rig, status: int, word: str, missing: list[str]) -> bool:
    """Whether /health says so."""
    async with rig.http.get(rig.url + "/health") as response:
        report = await response.json()
        return bool((response.status, report["status"], report["missing"]) == (status, word, missing))


async def assert_error(response: aiohttp.ClientResponse, status: int, reason: str) -> str:
    """The answer is an error in OpenAI's shape that says `reason`; returns its text."""
    text = await response.text()
    assert response.status == status, text
    error = json.loads(text)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert reason in error["message"]
    return text


async def said(*arguments: str, typed: str = "", code: int = 0) -> str:
    """What a tandem command printed."""
    command = [sys.executable, "-m", "tandem", *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = await asyncio.create_subprocess_exec(*command, **pipes)
    out, _ = await process.communicate(typed.encode())
    assert process.returncode == code, out
    return out.decode()


@trial
async def test_keys_keep_others_out_and_are_not_passed_on() -> None:
    key = new_key()
    keys = Keys((Key(name="alice", sha256=digest_of(key), in_flight=1),))
    async with rigged(keys=keys) as rig:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            async with rig.post(BODY, headers=headers) as response:
                error = (await response.json())["error"]
                assert (response.status, error["code"], error["type"]) == (
                    401, "invalid_api_key", "authentication_error"
                )  # fmt: skip
                assert response.headers["WWW-Authenticate"] == "Bearer"
            async with rig.http.get(rig.url + "/v1/models", headers=headers) as response:
                assert response.status == 401
        assert rig.prefill.bodies == []
        mine = {"Authorization": f"Bearer {key}"}
        async with rig.post(BODY, headers=mine) as response:
            assert response.status == 200
        async with rig.http.get(rig.url + "/v1/models", headers=mine) as response:
            assert response.status == 200
        assert all("Authorization" not in headers for headers in (*rig.prefill.headers, *rig.decode.headers))
        assert await rig.metric('tandem_gateway_key_requests_total{key="alice"}') == 2
        async with rig.http.get(rig.url + "/health") as response:
            assert response.status == 200
        rig.prefill.script = never
        first = asyncio.create_task(rig.http.post(rig.url + "/v1/completions", json=BODY, headers=mine))
        rig.prefill.arrived.clear()
        await rig.prefill.arrived.wait()
        async with rig.post(BODY, headers=mine) as response:
            assert (response.status, response.headers["Retry-After"]) == (429, "1")
            assert (await response.json())["error"]["type"] == "rate_limit_error"
        first.cancel()
