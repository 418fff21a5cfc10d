"""Workers that fail, die and freeze behind the gateway: what its clients see of that is nothing."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop
from aiohttp import web
from fake_model import (
    DONE,
    IDS,
    PROMPT,
    TEXT,
    Blow,
    breaks_an_event,
    dies,
    ends,
    failing_after,
    fails,
    freezes,
    model,
    resets,
)
from fake_worker import TICKET, FakeWorker, Script, answers, answers_late, by_leg, early_ticket, never, stream, words
from gateway_rig import BODY, CHAT, SOON_S, Rig, rigged, trial, until

from tandem.gateway.delivery import tries
from tandem.gateway.delivery.tries import ROUNDS
from tandem.gateway.workers.breaker import FAILURES_TO_OPEN
from tandem.gateway.workers.patience import Patience

NATIVE = ("release", "early_ticket", "choices", "resume", "ticket_reuse")
DIALECTS = {"native": NATIVE, "vllm": ()}
SHORT = Patience(suspect_seconds=0.1, probe_seconds=0.1)
COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
BLOWS: dict[str, Callable[[Callable[[], FakeWorker]], Blow]] = {
    "resets": lambda _: resets,
    "breaks an event": lambda _: breaks_an_event,
    "fails": lambda _: fails,
    "ends": lambda _: ends,
    "dies": dies,
    "freezes": freezes,
}


@pytest.fixture(autouse=True)
def without_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tries, "PAUSE_S", 0.01)


def run(scenario: Coroutine[Any, Any, Any]) -> Any:
    return uvloop.run(asyncio.wait_for(scenario, 25))


def asked(path: str = COMPLETIONS, **fields: Any) -> tuple[str, dict[str, Any]]:
    body = CHAT if path == CHATS else BODY
    return path, body | {"stream": True, "stream_options": {"include_usage": True}} | fields


async def streamed(rig: Rig, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of an answer, which must be whole."""
    async with rig.post(body, path) as response:
        raw = await response.read()
        assert response.status == 200, raw
    *told, done, rest = raw.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b""), raw
    return [json.loads(one.removeprefix(b"data: ")) for one in told]


def text_of(choice: dict[str, Any]) -> str:
    return str(choice.get("text") or choice.get("delta", {}).get("content") or "")


def check_whole(events: list[dict[str, Any]]) -> None:
    """One answer: nothing doubled, nothing missing, and nobody can see that it had two authors."""
    choices = [choice for event in events for choice in event["choices"]]
    assert "".join(map(text_of, choices)) == TEXT
    assert [choice["finish_reason"] for choice in choices if choice.get("finish_reason")] == ["length"]
    assert len({(event["id"], event["created"], event["model"], event["object"]) for event in events}) == 1
    counts = {"prompt_tokens": len(PROMPT), "completion_tokens": len(IDS), "total_tokens": len(PROMPT) + len(IDS)}
    assert [event["usage"] for event in events if event.get("usage")] == [counts]
    assert events[-1]["choices"] == []
    assert "token_ids" not in json.dumps(events)


async def check_counts(rig: Rig, path: str = COMPLETIONS, worker: str = "decode-0") -> None:
    """One request that went well, and one failure that its client did not see; nothing is left of it."""
    assert await rig.metric(f'tandem_gateway_requests_total{{endpoint="{path}",outcome="ok"}}') == 1
    assert await rig.metric(f'tandem_gateway_worker_failures_total{{worker="{worker}"}}') == 1
    assert await rig.metric(f'tandem_gateway_retries_total{{worker="{worker}"}}') == 1
    assert await rig.metric("tandem_gateway_in_flight") == 0
    await rig.gateway._legs.finish()
    assert not any(rig.gateway.pool.vitals(one).exchanges for one in rig.gateway.pool.workers)


async def streamed_through(
    path: str, body: dict[str, Any], *, events: int, blow: str, capabilities: tuple[str, ...]
) -> list[dict[str, Any]]:
    """The events of an answer whose first decode worker is struck after so many."""
    async with rigged(prefill=model, decode=(model, model), capabilities=capabilities, patience=SHORT) as rig:
        rig.decode.script = failing_after(events, BLOWS[blow](lambda: rig.decode))
        told = await streamed(rig, path, body)
        assert len(rig.decode.bodies) == 1
        await check_counts(rig, path)
        return told


@pytest.mark.parametrize("blow", BLOWS)
@pytest.mark.parametrize("path", [COMPLETIONS, CHATS])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_stream_that_breaks_goes_on_elsewhere(dialect: str, path: str, blow: str) -> None:
    # A worker that freezes takes a while to be found out; the place of the blow matters not to that.
    for events in (4,) if blow == "freezes" else range(1, len(IDS) + 3):
        check_whole(run(streamed_through(*asked(path), events=events, blow=blow, capabilities=DIALECTS[dialect])))


@pytest.mark.parametrize(
    ("streams", "blow"),
    [*((True, blow) for blow in BLOWS), *((False, blow) for blow in ("resets", "fails", "dies", "freezes"))],
)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_answer_that_fails_before_its_first_byte_begins_elsewhere(dialect: str, streams: bool, blow: str) -> None:
    script = answers(500, {}) if blow == "fails" and not streams else None

    async def scenario() -> None:
        async with rigged(prefill=model, decode=(model, model), capabilities=DIALECTS[dialect], patience=SHORT) as rig:
            rig.decode.script = script or failing_after(0, BLOWS[blow](lambda: rig.decode))
            if streams:
                check_whole(await streamed(rig, *asked()))
            else:
                async with rig.post(BODY) as response:
                    assert (await response.json())["choices"][0]["text"] == TEXT
                    assert response.headers["X-Tandem-Decode"] == "decode-1"
            await check_counts(rig)

    run(scenario())


@pytest.mark.parametrize("confirmed", [True, False])
@pytest.mark.parametrize("streams", [True, False])
def test_a_ticket_that_was_not_used_is_shown_to_another_where_its_holder_confirms_it(
    streams: bool, confirmed: bool
) -> None:
    async def scenario() -> None:
        async with rigged(prefill=model, decode=(answers(500, {}), model), capabilities=NATIVE) as rig:
            rig.prefill.renews = confirmed
            body = asked()[1] if streams else BODY
            async with rig.post(body) as response:
                assert response.status == 200, await response.text()
                assert response.headers["X-Tandem-Decode"] == "decode-1"
                assert response.headers["X-Tandem-Route"] == "apart"
                await response.read()
            await check_counts(rig)
            assert rig.prefill.renewed == [TICKET["remote_request_id"]]
            assert len(rig.prefill.bodies) == (1 if confirmed else 2)
            shown = [worker.bodies[0]["kv_transfer_params"] for worker in rig.decodes]
            assert shown == [TICKET | {"release_on_abort": False}] * 2
            assert rig.prefill.released.qsize() == (0 if confirmed else 1)

    run(scenario())


@trial
async def test_a_kept_ticket_is_given_back_when_its_client_leaves() -> None:
    async with rigged(prefill=model, decode=(answers(500, {}), never), capabilities=NATIVE) as rig:
        asking = asyncio.create_task(rig.post(BODY).__aenter__())
        await asyncio.wait_for(rig.decodes[1].arrived.wait(), 5)
        asking.cancel()
        assert await asyncio.wait_for(rig.prefill.released.get(), 5) == TICKET["remote_request_id"]


@pytest.mark.parametrize("blow", ["resets", "fails", "freezes"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_client_that_wants_ids_gets_each_of_them_once(dialect: str, blow: str) -> None:
    for events in (2, 4, 6):
        path, body = asked(return_token_ids=True)
        told = run(streamed_through(path, body, events=events, blow=blow, capabilities=DIALECTS[dialect]))
        choices = [choice for event in told for choice in event["choices"]]
        assert [token for choice in choices for token in choice["token_ids"]] == IDS
        assert next(choice["prompt_token_ids"] for choice in choices if "prompt_token_ids" in choice) == PROMPT


@trial
async def test_models_are_listed_by_whoever_answers() -> None:
    async with rigged(decode=(model, model)) as rig:
        for worker in rig.decodes:
            worker.listing = 500
        async with rig.http.get(rig.url + "/v1/models") as response:
            assert (response.status, (await response.json())["data"][0]["id"]) == (200, "m")
        rig.prefill.listing = 500
        async with rig.http.get(rig.url + "/v1/models") as response:
            assert (response.status, "X-Request-Id" in response.headers) == (502, True)


def says(raw: bytes) -> Script:
    """A decode instance that answers with these bytes, streamed or not, and status 200."""

    async def script(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if body.get("stream"):
            return await stream(request, [raw])
        return web.Response(body=raw, content_type="application/json")

    return script


DEEP = b"[" * 100_000
HOLLOW = {
    "nothing": b"{}",
    "no choices": b'{"id": "x", "choices": []}',
    "null": b'{"choices": null}',
    "an error": b'{"error": {"message": "boom at 10.1.2.3:99"}}',
    "no text": b'{"choices": [{"text": "a"}], "\xff": 1}',
    "an odd usage": b'{"choices": [{"text": "a"}], "usage": "\xff"}',
    "no end of it": b'{"choices": [{"text": "a"}], "usage": ' + DEEP,
}
HOLLOW_STREAMS = {
    "an end alone": DONE,
    "a role alone": b'data: {"id": "x", "choices": [{"index": 0, "delta": {"role": "assistant"}}]}\n\n' + DONE,
    "an error without a space": b'data:{"error":{"message":"boom at 10.1.2.3:99"}}\n\n' + DONE,
    "an error with spaces": b'data: { "error": {"message": "boom at 10.1.2.3:99"}}\n\n' + DONE,
    "an error of old": b'data: {"object":"error","message":"boom at 10.1.2.3:99"}\n\n' + DONE,
}


@pytest.mark.parametrize(
    ("streams", "said"),
    [*((False, name) for name in HOLLOW), *((True, name) for name in HOLLOW_STREAMS)],
)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_status_of_200_makes_no_answer(dialect: str, streams: bool, said: str) -> None:
    async def scenario() -> None:
        script = says((HOLLOW_STREAMS if streams else HOLLOW)[said])
        async with rigged(prefill=model, decode=(script, model), capabilities=DIALECTS[dialect]) as rig:
            if streams:
                check_whole(await streamed(rig, *asked()))
            else:
                async with rig.post(BODY) as response:
                    assert (await response.json())["choices"][0]["text"] == TEXT
            await check_counts(rig)

    run(scenario())


@pytest.mark.parametrize("dialect", DIALECTS)
def test_events_stay_apart_where_a_hollow_end_cuts_between_them(dialect: str) -> None:
    async def cut(request: web.Request, response: web.StreamResponse) -> None:
        await response.write(b": ping\n")
        await asyncio.sleep(0.05)  # what comes next is a piece of its own
        await response.write(b"\n" + DONE)

    async def scenario() -> None:
        async with rigged(prefill=model, decode=(failing_after(3, cut), model), capabilities=DIALECTS[dialect]) as rig:
            async with rig.post(asked()[1]) as response:
                raw = await response.read()
            assert b"\n: ping\n\ndata: " in raw
            assert b"".join(raw.partition(b": ping\n\n")[::2]).count(b"\n\n") == raw.count(b"data: ")

    run(scenario())


WORD = b'data: {"id": "x", "choices": [{"index": 0, "text": "a", "finish_reason": null}]}\n\n'
LAST = WORD.replace(b"null", b'"stop"')


@pytest.mark.parametrize("behind", [b": ping\n\n", WORD, DONE, b'data: {"error": {}}\n\n', b"data: {"])
def test_what_stands_behind_the_end_is_nobodys(behind: bytes) -> None:
    async def scenario() -> None:
        async with rigged(decode=says(WORD + LAST + DONE + behind)) as rig, rig.post(BODY | {"stream": True}) as answer:
            assert await answer.read() == WORD + LAST + DONE
        assert rig.gateway.pool.in_flight().total() == 0

    run(scenario())


@pytest.mark.parametrize("odd", [b'"text": null', b'"text": 5', b'"\xff": 1', b'"x": ' + DEEP[:2000]])
def test_a_long_stream_that_nobody_could_go_on_with_goes_on_by_itself(odd: bytes) -> None:
    async def scenario() -> None:
        told = WORD.replace(b'"text": "a"', odd) + 400 * WORD.replace(b"a", b"a" * 200, 1) + LAST + DONE
        async with rigged(decode=says(told)) as rig, rig.post(BODY | {"stream": True}) as answer:
            assert await answer.read() == told

    run(scenario())


@pytest.mark.parametrize("nameless", [WORD.replace(b'"id": "x", ', b""), WORD.replace(b'"x"', b'""')])
def test_a_stream_without_an_id_is_not_begun_anew(nameless: bytes) -> None:
    async def scenario() -> None:
        decode = (says(nameless), says(WORD + LAST + DONE))
        async with rigged(decode=decode) as rig, rig.post(BODY | {"stream": True}) as answer:
            first, last, rest = (await answer.read()).split(b"\n\n")
        assert (first + b"\n\n", rest) == (nameless, b"")
        assert "it has no id" in json.loads(last.strip().removeprefix(b"data: "))["error"]["message"]

    run(scenario())


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_answer_may_break_more_than_once(dialect: str) -> None:
    async def scenario() -> None:
        async with rigged(prefill=model, decode=(model,) * 4, capabilities=DIALECTS[dialect]) as rig:
            for worker, blow in zip(rig.decodes, (resets, fails, ends), strict=False):
                worker.script = failing_after(2, blow)
            check_whole(await streamed(rig, *asked()))
            assert [len(worker.bodies) for worker in rig.decodes] == [1, 1, 1, 1]
            assert await rig.metric("tandem_gateway_continuations_total") == 3

    run(scenario())


@pytest.mark.parametrize("blow", ["resets", "dies", "freezes"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_several_choices_go_on_each_by_itself(dialect: str, blow: str) -> None:
    async def scenario() -> None:
        async with rigged(prefill=model, decode=(model, model), capabilities=DIALECTS[dialect], patience=SHORT) as rig:
            rig.decode.script = failing_after(3, BLOWS[blow](lambda: rig.decode))
            events = await streamed(rig, *asked(n=4))
            for place in range(4):
                of_one = [choice for event in events for choice in event["choices"] if choice["index"] == place]
                assert "".join(map(text_of, of_one)) == TEXT
            assert len({event["id"] for event in events}) == 1
            assert [event["usage"]["total_tokens"] for event in events if event.get("usage")] == [2 + 4 * len(IDS)]

    run(scenario())


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_comes_after_the_end_matters_to_nobody(dialect: str) -> None:
    """A connection that is lost behind `[DONE]` is no failure, and nothing is sent twice."""

    async def done_and_reset(request: web.Request, response: web.StreamResponse) -> None:
        await response.write(DONE)
        await asyncio.sleep(0.05)
        await resets(request, response)

    async def scenario() -> None:
        async with rigged(prefill=model, decode=(model, model), capabilities=DIALECTS[dialect]) as rig:
            rig.decode.script = failing_after(100, done_and_reset)
            check_whole(await streamed(rig, *asked()))
            assert rig.decodes[1].bodies == []

    run(scenario())


async def drops(request: web.Request, _: dict[str, Any]) -> web.StreamResponse:
    """Resets the connection in place of an answer."""
    assert request.transport is not None
    request.transport.abort()
    raise ConnectionResetError


PREFILL_FAILURES: dict[str, Script] = {
    "500": answers(500, {}),
    "503": answers(503, {}),
    "502": answers(502, {}),
    "resets": drops,
    "no ticket": answers(200, {"choices": [{"finish_reason": "length"}]}),
    "no JSON": answers(200, "oops"),
}


@pytest.mark.parametrize("failure", PREFILL_FAILURES)
@pytest.mark.parametrize("streams", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_prefill_that_fails_is_done_by_another(dialect: str, streams: bool, failure: str) -> None:
    async def scenario() -> None:
        async with rigged(prefill=(model, model), decode=model, capabilities=DIALECTS[dialect]) as rig:
            rig.prefill.script = PREFILL_FAILURES[failure]
            async with rig.post(asked(stream=streams)[1]) as response:
                await response.read()
                names = [response.headers[f"X-Tandem-{what}"] for what in ("Prefill", "Decode", "Route")]
                assert (response.status, names) == (200, ["prefill-1", "decode-0", "apart"])
            await check_counts(rig, worker="prefill-0")

    run(scenario())


@pytest.mark.parametrize("state", ["dead", "frozen"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_prefill_that_is_gone_is_done_by_another(dialect: str, state: str) -> None:
    async def scenario() -> None:
        async with rigged(prefill=(model, model), decode=model, capabilities=DIALECTS[dialect], patience=SHORT) as rig:
            setattr(rig.prefill, state, True)
            check_whole(await streamed(rig, *asked()))
            await check_counts(rig, worker="prefill-0")

    run(scenario())


@trial
async def test_a_prefill_that_freezes_under_way_is_done_by_another() -> None:
    async with rigged(prefill=(model, model), decode=model, capabilities=NATIVE, patience=SHORT) as rig:

        async def freeze(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            rig.prefill.frozen = True
            return await never(request, body)

        async def pull(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            return await (never if len(rig.decode.bodies) == 1 else model)(request, body)

        rig.prefill.script, rig.decode.script = early_ticket(freeze), pull
        check_whole(await streamed(rig, *asked()))
        assert len(rig.prefills[1].bodies) == 1
        await asyncio.wait_for(rig.decode.aborted.wait(), SOON_S)


@pytest.mark.parametrize("state", ["dead", "frozen"])
@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_those_who_are_left_serve_alone(dialect: str, role: str, state: str) -> None:
    async def scenario() -> None:
        async with rigged(prefill=model, decode=model, capabilities=DIALECTS[dialect], patience=SHORT) as rig:
            setattr(getattr(rig, role), state, True)
            async with rig.post(asked()[1]) as response:
                raw = await response.read()
                other = {"prefill": "decode", "decode": "prefill"}[role]
                assert (response.status, response.headers["X-Tandem-Route"]) == (200, f"{other}-alone")
                assert raw.endswith(DONE)
            assert await rig.metric(f'tandem_gateway_routes_total{{kind="{other}-alone"}}') == 1

    run(scenario())


@trial
async def test_what_is_open_with_a_worker_that_was_started_again_goes_on_elsewhere() -> None:
    period, patience = 0.05, Patience(slow_seconds=60)
    async with rigged(model, (model, model), NATIVE, patience=patience, health_period_s=period) as rig:

        async def starts_again(_: web.Request, __: web.StreamResponse) -> None:
            rig.decode.said["engine_id"] = "another"
            await asyncio.Event().wait()

        rig.decode.script = failing_after(3, starts_again)
        check_whole(await streamed(rig, *asked()))
        await check_counts(rig)
        assert await rig.metric('tandem_gateway_worker_failures_total{worker="decode-0",cause="left"}') == 1


@trial
async def test_the_only_one_that_is_left_is_not_given_up() -> None:
    async with rigged(prefill=(), decode=model, capabilities=NATIVE, patience=SHORT) as rig:
        thawed = asyncio.Event()

        async def thaws(_: web.Request, response: web.StreamResponse) -> None:
            rig.decode.frozen = True
            await thawed.wait()
            await response.write(DONE)

        rig.decode.script = failing_after(100, thaws)
        asking = asyncio.create_task(streamed(rig, *asked()))
        await asyncio.sleep(1)
        assert not asking.done()
        rig.decode.frozen = False
        thawed.set()
        check_whole(await asking)


@trial
async def test_when_everybody_fails_in_the_middle_the_client_is_told_who() -> None:
    async with rigged(prefill=model, decode=(model, model), capabilities=NATIVE) as rig:
        for worker in (rig.prefill, rig.decodes[1]):
            worker.script = by_leg(model, answers(500, {}), decode=answers(500, {}))
        rig.decode.script = by_leg(model, drops, decode=failing_once(3, drops))
        async with rig.post(asked()[1]) as response:
            raw = await response.read()
        assert raw.count(b"token_ids") == 0
        error = json.loads(raw.split(b"data: ")[-1])["error"]
        assert error["code"] == "worker_failed"
        assert error["message"].startswith(("prefill-0 ", "decode-0 ", "decode-1 "))
        broken = f'tandem_gateway_requests_total{{endpoint="{COMPLETIONS}",outcome="broken"}}'
        assert await rig.metric(broken) == 1


def failing_once(events: int, then: Script) -> Script:
    """Begins an answer the first time."""
    asked_before: list[object] = []

    async def script(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        asked_before.append(body)
        return await (failing_after(events, resets) if len(asked_before) == 1 else then)(request, body)

    return script


@pytest.mark.parametrize("script", [answers(500, {}), drops], ids=["500", "drops"])
def test_what_fails_everywhere_is_told_after_so_many_rounds(script: Script) -> None:
    async def scenario() -> None:
        async with rigged(prefill=(script, script), decode=(script, script)) as rig:
            async with rig.post(asked()[1]) as response:
                error = (await response.json())["error"]
            assert (response.status, error["code"]) == (502, "worker_failed")
            assert error["message"].startswith(("prefill-", "decode-"))
            assert [len(worker.bodies) for worker in rig.prefills + rig.decodes] == [ROUNDS] * 4

    run(scenario())


@trial
async def test_the_deadline_ends_all_tries() -> None:
    async with rigged(prefill=(), decode=(answers_late(500, {}),) * 4) as rig:
        async with rig.post(asked(deadline_seconds=0.25)[1]) as response:
            error = (await response.json())["error"]
        assert (response.status, error["code"]) == (504, "deadline_exceeded")
        assert sum(len(worker.bodies) for worker in rig.decodes) in (3, 4)


@trial
async def test_a_client_that_leaves_while_its_answer_goes_on_elsewhere_aborts_it() -> None:
    async with rigged(prefill=model, decode=(model, model), capabilities=NATIVE) as rig:
        rig.decode.script, rig.decodes[1].script = failing_after(3, resets), never
        async with rig.post(asked()[1]) as response:
            await response.content.readany()
            await rig.decodes[1].arrived.wait()
            response.close()
        await asyncio.wait_for(rig.decodes[1].aborted.wait(), SOON_S)
        assert await asyncio.wait_for(rig.prefill.released.get(), SOON_S) == TICKET["remote_request_id"]


@trial
async def test_who_failed_often_gets_no_requests_for_a_while() -> None:
    async with rigged(prefill=(), decode=(answers(500, {}), words)) as rig:
        for _ in range(10):
            async with rig.post(BODY) as response:
                assert response.status == 200
        assert len(rig.decode.bodies) == FAILURES_TO_OPEN
        pool = rig.gateway.pool
        assert pool.vitals(pool.workers[0]).breaker.state(time.monotonic()) == "open"


@trial
async def test_of_a_hundred_requests_twenty_are_tried_again_at_a_time() -> None:
    async with rigged(prefill=(), decode=(words, words)) as rig:
        all_there, go_on = asyncio.Event(), asyncio.Event()

        def one_more() -> None:
            if sum(len(worker.bodies) for worker in rig.decodes) == 100:
                all_there.set()

        async def fails_with_the_others(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            one_more()
            await all_there.wait()
            return await answers(500, {})(request, body)

        async def waits(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            one_more()
            await go_on.wait()
            return await words(request, body)

        rig.decode.script, rig.decodes[1].script = fails_with_the_others, waits
        budget = rig.gateway._budget
        asking = [asyncio.create_task(rig.post(BODY).__aenter__()) for _ in range(100)]
        await all_there.wait()
        again = len(rig.decode.bodies)
        assert again >= 20

        async def all_have_failed() -> bool:
            return budget.retrying + budget.waiting == again

        await until(all_have_failed)
        assert budget.retrying == 20
        go_on.set()
        for response in await asyncio.gather(*asking):
            assert response.status == 200
            response.release()


@trial
async def test_many_streams_of_a_worker_that_dies_all_go_on() -> None:
    async with rigged(prefill=model, decode=(model, model, model), capabilities=NATIVE) as rig:
        rig.decode.script = failing_after(4, dies(lambda: rig.decode))
        for events in await asyncio.gather(*(streamed(rig, *asked()) for _ in range(60))):
            check_whole(events)
        assert await rig.metric('tandem_gateway_worker_failures_total{worker="decode-1"}') == 0
