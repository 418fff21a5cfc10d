"""A gateway that knows who must be there: whom it waits for, whom it refuses, and when it takes requests."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import pytest
import uvloop
from aiohttp import web
from fake_worker import TICKET, FakeWorker, answers, never, running, whole_with_ticket, words
from gateway_rig import BODY, trial, until

from tandem.errors import ProcessError, UsageError
from tandem.gateway.config import GatewayConfig
from tandem.gateway.door.listener import listen
from tandem.gateway.fleet import trial as trial_module
from tandem.gateway.processes.board import Board, shared_memory
from tandem.gateway.processes.commons import Commons
from tandem.gateway.server import Gateway
from tandem.gateway.workers.expected import Expected
from tandem.protocol.identity import Role, Seat
from tandem.protocol.seat_name import seat_name

TABLE = "0123456789abcdef"


def expected(position: int, role: Role) -> Expected:
    seat = Seat(host="10.0.0.1", devices=(position,), table=TABLE)
    return Expected(place=f"position {position}", role=role, seat=seat, max_model_len=64, model="m")


def introduction(one: Expected) -> dict[str, Any]:
    seat = {"host": one.seat.host, "devices": list(one.seat.devices), "table": one.seat.table}
    return {"role": one.role, "model": one.model, "max_model_len": one.max_model_len, "seat": seat}


@dataclass
class Start:
    """A gateway that has been started, in front of workers that are who they should be."""

    gateway: Gateway
    prefill: list[FakeWorker]
    decode: list[FakeWorker]
    http: aiohttp.ClientSession = field(repr=False)

    async def health(self) -> tuple[int, str]:
        async with self.http.get(self.gateway.url + "/health") as response:
            return response.status, (await response.json())["status"]

    async def ask(self) -> tuple[int, str]:
        async with self.http.post(self.gateway.url + "/v1/completions", json=BODY) as response:
            return response.status, await response.text()

    async def is_down(self, name: str) -> bool:
        async with self.http.get(self.gateway.url + "/health") as response:
            return (await response.json())["workers"][name] == "down"

    async def ready(self) -> None:
        await until(lambda: self.is_at(200, "ok"))

    async def is_at(self, *health: int | str) -> bool:
        return await self.health() == health


def models_of(one: Expected) -> list[dict[str, Any]]:
    """What a vLLM that was started for that place lists."""
    names = ("m", seat_name(one.role, one.seat))
    return [{"id": name, "object": "model", "max_model_len": one.max_model_len} for name in names]


@asynccontextmanager
async def starting(count: int = 1, *, stranger: dict[str, Any] | None = None, **options: Any) -> AsyncIterator[Start]:
    """The first prefill worker is down until a test says otherwise, unless it is a stranger."""
    async with AsyncExitStack() as stack:
        prefill = [await stack.enter_async_context(running(whole_with_ticket)) for _ in range(count)]
        decode = [await stack.enter_async_context(running(words)) for _ in range(count)]
        who = [expected(i, "prefill") for i in range(count)] + [expected(i + count, "decode") for i in range(count)]
        for worker, one in zip(prefill + decode, who, strict=True):
            worker.said = introduction(one)
        prefill[0].healthy = stranger is not None
        prefill[0].said |= stranger or {}
        urls = {"prefill": tuple(p.url for p in prefill), "decode": tuple(d.url for d in decode)}
        config = GatewayConfig(**urls, port=0, expected=tuple(who), health_period_s=0.02, grace_s=0.1, **options)
        gateway = Gateway(config)
        await gateway.start()
        stack.push_async_callback(gateway.stop)
        yield Start(gateway, prefill, decode, await stack.enter_async_context(aiohttp.ClientSession()))


@trial
async def test_it_waits_and_says_for_whom() -> None:
    async with starting() as start:
        assert await start.health() == (503, "starting")
        status, text = await start.ask()
        assert (status, "the service is starting and waits for prefill-0; try" in text) == (503, True)
        assert start.prefill[0].bodies == start.decode[0].bodies == []
        start.prefill[0].healthy = True
        await start.ready()
        trials = [one.bodies[0] for one in (start.prefill[0], start.decode[0])]
        assert [body["max_tokens"] for body in trials] == [1, 2]
        assert trials[1]["kv_transfer_params"] == TICKET
        assert (await start.ask())[0] == 200


@trial
async def test_every_pair_hands_over_once() -> None:
    async with starting(2) as start:
        start.prefill[0].healthy = True
        await start.ready()
        assert [len(one.bodies) for one in start.prefill + start.decode] == [2, 2, 2, 2]


@trial
async def test_it_stays_closed_until_the_hand_off_works() -> None:
    async with starting() as start:
        start.decode[0].script = answers(500, {"error": {"message": "pull failed"}})
        start.prefill[0].healthy = True

        async def tried_thrice() -> bool:
            return len(start.decode[0].bodies) >= 3

        await until(tried_thrice)
        assert await start.health() == (503, "starting")
        assert "waits for the first hand-offs" in (await start.ask())[1]
        start.decode[0].script = words
        await start.ready()


@trial
async def test_a_hand_off_that_fails_gives_its_ticket_back() -> None:
    async with starting() as start:
        for worker in (start.prefill[0], start.decode[0]):
            worker.capabilities = ("release", "ticket_reuse")
        start.decode[0].script = answers(500, {"error": {"message": "pull failed"}})
        start.prefill[0].healthy = True
        for _ in range(2):
            assert await asyncio.wait_for(start.prefill[0].released.get(), 5) == TICKET["remote_request_id"]


@trial
async def test_the_wait_may_have_an_end() -> None:
    async with starting(ready_timeout_s=0.1) as start:
        with pytest.raises(
            ProcessError, match=r"^gateway: not ready after 0.1 s: waiting for prefill-0 at http.*; see"
        ):
            await start.gateway.run()
    async with starting(ready_timeout_s=0.3) as start:
        start.decode[0].script, start.prefill[0].healthy = never, True
        with pytest.raises(ProcessError, match=r"^gateway: not ready after 0.3 s"):
            await start.gateway.run()


@pytest.mark.parametrize(
    ("stranger", "said"),
    [
        (
            {"role": "decode"},
            "position 0: decode on devices 0 of 10.0.0.1 answers there instead of prefill on devices 0 of 10.0.0.1; "
            "put the ports in the order of the global rank table: prefill, then decode",
        ),
        (
            {"seat": {"host": "10.0.0.1", "devices": [3], "table": TABLE}},
            "position 0: prefill on devices 3 of 10.0.0.1 answers there instead of prefill on devices 0 of 10.0.0.1; "
            "put the ports in the order of the global rank table: prefill, then decode",
        ),
        (
            {"seat": {"host": "10.0.0.2", "devices": [0], "table": TABLE}},
            "position 0: prefill on devices 0 of 10.0.0.2 answers there instead of prefill on devices 0 of 10.0.0.1; "
            "put the ports in the order of the global rank table: prefill, then decode",
        ),
        (
            {"seat": {"host": "10.0.0.1", "devices": [0], "table": "f" * 16}},
            "position 0: prefill on devices 0 of 10.0.0.1 was started with the global rank table ffffffffffffffff, "
            "here it is 0123456789abcdef; copy one table to all instances and start them again",
        ),
        (
            {"seat": None},
            "position 0: an instance answers there that was not started from a rank table, instead of prefill on "
            "devices 0 of 10.0.0.1; start it with `tandem serve --from-rank-table`, or mend the port",
        ),
        (
            {"max_model_len": 32},
            "position 0: prefill on devices 0 of 10.0.0.1 has --max-model-len 32, here it is 64; "
            "start all with the same",
        ),
        (
            {"model": "other"},
            "position 0: prefill on devices 0 of 10.0.0.1 has --served-model-name other, here it is m; "
            "start all with the same",
        ),
    ],
)
def test_a_stranger_ends_the_start_and_its_place_is_named(stranger: dict[str, Any], said: str) -> None:
    async def scenario() -> None:
        async with starting(stranger=stranger) as start:
            with pytest.raises(UsageError) as refusal:
                await start.gateway.run()
            assert str(refusal.value) == said

    uvloop.run(scenario())


@trial
async def test_a_stranger_that_comes_later_stays_down() -> None:
    async with starting() as start:
        start.prefill[0].healthy = True
        await start.ready()
        start.prefill[0].said = introduction(replace(expected(0, "prefill"), max_model_len=65))
        start.prefill[0].healthy = False
        await until(lambda: start.is_at(200, "degraded"))
        start.prefill[0].healthy = True
        await asyncio.sleep(0.1)
        assert await start.health() == (200, "degraded")


@trial
async def test_an_engine_without_identity_is_known_by_its_names() -> None:
    async with starting() as start:
        for worker, one in zip(
            start.prefill + start.decode, (expected(0, "prefill"), expected(1, "decode")), strict=True
        ):
            worker.capabilities, worker.models = (), models_of(one)
        start.prefill[0].healthy = True
        await start.ready()
        async with start.http.get(start.gateway.url + "/v1/models") as response:
            assert [card["id"] for card in (await response.json())["data"]] == ["m"]


@pytest.mark.parametrize(
    ("models", "said"),
    [
        (models_of(expected(1, "decode")), "position 0: decode on devices 1 of 10.0.0.1 answers there instead of"),
        ([{"id": "m", "max_model_len": 64}], "position 0: an instance answers there that was not started from a rank"),
        ([], "position 0: an instance answers there that was not started from a rank table"),
        (models_of(replace(expected(0, "prefill"), max_model_len=9)), "has --max-model-len 9, here it is 64"),
    ],
)
def test_a_stranger_without_identity_is_known_too(models: list[dict[str, Any]], said: str) -> None:
    async def scenario() -> None:
        async with starting() as start:
            start.prefill[0].capabilities, start.prefill[0].models = (), models
            start.prefill[0].healthy = True
            with pytest.raises(UsageError, match=said):
                await start.gateway.run()

    uvloop.run(scenario())


UNREADABLE = {
    "no text": (200, b'{"model": "\xff"}'),
    "nested": (200, b'{"a": ' * 100_000 + b"1" + b"}" * 100_000),
    "html": (200, b"<html>"),
    "list": (200, b"[]"),
    "another seat": (200, b'{"seat": 7}'),
    "two lines": (200, b'{"model": "a\\nb"}'),
    "long": (200, b'{"model": "' + b"x" * 5000 + b'"}'),
    "huge": (200, b" " * 2**21),
    "status": (500, b"{}"),
    "redirect": (302, b""),
}


@pytest.mark.parametrize(("status", "body"), UNREADABLE.values(), ids=UNREADABLE)
def test_who_answers_with_what_nobody_can_read_is_waited_for_by_name(
    status: int, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def answered() -> web.Response:
        return web.Response(status=status, body=body, headers={"Location": "/health"} if status == 302 else {})

    async def scenario() -> None:
        async with starting() as start:
            start.prefill[0].identify, start.prefill[0].healthy = answered, True
            what = "nothing readable" if status == 200 else f"status {status}"
            told = f"prefill-0 at {start.prefill[0].url} (it answers /health, but /identity with {what}; is it an"
            await until(lambda: said(told))
            start.prefill[0].identify = None
            await start.ready()
            start.prefill[0].identify, start.prefill[0].healthy = answered, False
            await until(lambda: start.is_at(200, "degraded"))
            start.prefill[0].healthy = True
            await asyncio.sleep(0.1)
            assert await start.health() == (200, "degraded")
            start.decode[0].healthy = False  # the watch still sees it
            await until(lambda: start.is_down("decode-0"))

    async def said(text: str) -> bool:
        return text in caplog.text

    with caplog.at_level(logging.INFO):
        uvloop.run(asyncio.wait_for(scenario(), 15))


@pytest.mark.parametrize(
    ("status", "why"), [(401, "which wants a key; start it without one"), (503, "so it cannot be")]
)
def test_an_engine_that_does_not_list_its_models_is_waited_for(
    status: int, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with starting() as start:
            start.prefill[0].capabilities, start.prefill[0].listing = (), status
            start.prefill[0].healthy = True

            async def told() -> bool:
                return f"(it answers /v1/models with status {status}, {why}" in caplog.text

            await until(told)
            before = len(caplog.records)
            await asyncio.sleep(0.2)
            assert len(caplog.records) == before
            start.prefill[0].listing, start.prefill[0].models = 200, models_of(expected(0, "prefill"))
            await start.ready()

    with caplog.at_level(logging.INFO):
        uvloop.run(asyncio.wait_for(scenario(), 15))


@trial
async def test_where_anybody_may_stand_an_engine_need_not_tell_its_models() -> None:
    async with running(words, ()) as worker, aiohttp.ClientSession() as http:
        worker.listing = 401
        gateway = Gateway(GatewayConfig(decode=(worker.url,), port=0, grace_s=0.1))
        await gateway.start()
        async with http.post(gateway.url + "/v1/completions", json=BODY) as response:
            assert response.status == 200
        await gateway.stop()


@trial
async def test_seats_are_not_told_to_clients() -> None:
    async with starting() as start:
        start.prefill[0].healthy = True
        await start.ready()
        seat = seat_name("prefill", expected(0, "prefill").seat)
        async with start.http.post(start.gateway.url + "/v1/completions", json=BODY | {"model": seat}) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (404, "model_not_found")
        asked = len(start.prefill[0].bodies)
        start.prefill[0].script = answers(404, {"error": {"message": f"unknown; valid aliases: m, {seat}."}})
        status, text = await start.ask()
        assert (status, "10.0.0.1" in text, "valid aliases: m." in text) == (404, False, True)
        assert len(start.prefill[0].bodies) == asked + 1


@trial
async def test_a_foreign_service_is_named_too() -> None:
    async with AsyncExitStack() as stack:
        foreign = await stack.enter_async_context(running(words))
        foreign.healthy, foreign.unhealthy = False, 404
        config = GatewayConfig(
            prefill=(foreign.url,),
            decode=("http://127.0.0.1:9",),
            port=0,
            expected=(expected(0, "prefill"), expected(1, "decode")),
            health_period_s=0.02,
            ready_timeout_s=0.2,
        )
        gateway = Gateway(config)
        await gateway.start()
        stack.push_async_callback(gateway.stop)
        with pytest.raises(ProcessError, match=r"prefill-0 at http\S+ \(it answers /health with status 404; is it an"):
            await gateway.run()


@trial
async def test_a_stranger_that_comes_during_the_proof_ends_the_start() -> None:
    async with starting() as start:
        start.decode[0].script = answers(500, {"error": {"message": "pull failed"}})
        start.prefill[0].healthy = True
        await start.prefill[0].arrived.wait()
        start.prefill[0].healthy = False
        await until(lambda: start.is_down("prefill-0"))
        asked = len(start.prefill[0].bodies)
        start.prefill[0].said = introduction(expected(0, "prefill")) | {"role": "decode"}
        start.prefill[0].healthy = True
        with pytest.raises(UsageError, match=r"^position 0: decode on devices 0 of 10\.0\.0\.1 answers there instead"):
            await start.gateway.run()
        assert len(start.prefill[0].bodies) <= asked + 1


def test_a_hand_off_that_hangs_is_named_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trial_module, "TRIAL_S", 0.2)

    async def scenario() -> None:
        async with starting() as start:
            start.prefill[0].script, start.prefill[0].healthy = never, True

            async def asked_again() -> bool:
                return len(start.prefill[0].bodies) >= 2

            await until(asked_again)
            start.prefill[0].script = whole_with_ticket
            await start.ready()

    with caplog.at_level(logging.INFO):
        uvloop.run(asyncio.wait_for(scenario(), 15))
    assert "trying the hand-off from prefill-0 to decode-0" in caplog.text
    assert "prefill-0 does not hand over to decode-0 yet: no answer in 0.2 s; it is asked again" in caplog.text


@trial
async def test_one_of_several_processes_finds_out_for_all() -> None:
    async with starting() as start, AsyncExitStack() as stack:
        memory = shared_memory(2)
        stack.callback(os.close, memory)
        processes = []
        for row in (0, 1):
            common = Commons(sockets=listen("127.0.0.1", 0), board=Board(2, row, memory), row=row)
            processes.append(Gateway(start.gateway.config, common))
            await processes[-1].start()
            stack.push_async_callback(processes[-1].stop)
        assert not any(one.pool.is_open for one in processes)
        start.prefill[0].healthy = True
        await start.ready()

        async def all_are_open() -> bool:
            return all(one.pool.is_open for one in processes)

        await until(all_are_open)
        assert len(start.prefill[0].bodies) == 2  # of the rig's own gateway, and of the first process
        late = Gateway(start.gateway.config, Commons(board=Board(2, 0, memory)))
        assert late.pool.is_open
