"""The mock instances over HTTP: the hand-off in both dialects, and every misuse of a ticket."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
import uvloop
from aiohttp import web
from chaos.router.client import Exchange, exchange
from chaos.router.judge import judge
from chaos.router.load import KINDS, Ask, ask
from chaos.router.mock.language import cached
from chaos.router.mock.server import Server
from chaos.router.mock.wish import Dialect

from tandem.deploy.port import free_ports

Json = dict[str, Any]

WHOLE = ask(3, 7, next(kind for kind in KINDS if kind.name == "completion, whole"))
CHAT = ask(3, 7, next(kind for kind in KINDS if kind.name == "chat, token ids, usage"))
STREAM = ask(4, 7, next(kind for kind in KINDS if kind.name == "completion of ids, token ids"))
SEVERAL = ask(3, 7, next(kind for kind in KINDS if kind.name == "completion, n=2, seed, usage"))
KEEP = {"kv_transfer_params": {"do_remote_decode": True}, "max_tokens": 1, "stream": False, "stream_options": None}


@dataclass
class Pair:
    """A prefill and a decode instance in this process, and what a router would do with them."""

    prefill: Server
    decode: Server
    http: aiohttp.ClientSession

    async def post(self, server: Server, path: str, body: Json | None) -> tuple[int, bytes]:
        async with self.http.post(f"http://127.0.0.1:{server.port}{path}", json=body) as response:
            return response.status, await response.read()

    async def ticket(self, one: Ask, **more: Any) -> Json:
        status, body = await self.post(self.prefill, one.path, one.body | KEEP | more)
        assert status == 200, body
        params: Json = json.loads(body)["kv_transfer_params"]
        return params

    async def answer(self, one: Ask, ticket: Json | None) -> Exchange:
        """From the decode instance; what its dialect tells besides is taken out, as a router has to."""
        given = Ask(one.number, one.kind, one.body | {"kv_transfer_params": ticket})
        got = await exchange(self.http, f"http://127.0.0.1:{self.decode.port}", given, 10.0)
        got.body = got.body.replace(b'"kv_transfer_params":null,', b"")
        return got

    async def outcome(self, one: Ask, ticket: Json | None) -> str:
        got = await self.answer(one, ticket)
        got.body = corrected(one, got.body)
        return judge(one, got).outcome


def corrected(one: Ask, answer: bytes) -> bytes:
    """As a router tells it: of what was cached, the prefill instance knows."""
    prompt = one.wish.prompt
    pulled, found = b'"cached_tokens":%d' % (len(prompt) - 1), b'"cached_tokens":%d' % cached(prompt)
    return answer.replace(pulled, found)


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[Server]:
    runner = web.AppRunner(server.application(), handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", server.port).start()
    try:
        yield server
    finally:
        await runner.cleanup()


@asynccontextmanager
async def pair(dialect: Dialect, lease_s: float = 30.0) -> AsyncIterator[Pair]:
    one, other = free_ports("127.0.0.1", 2)
    async with (
        serving(Server("prefill", one, dialect, lease_s)) as prefill,
        serving(Server("decode", other, dialect, lease_s)) as decode,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http,
    ):
        yield Pair(prefill, decode, http)


def played(scenario: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A coroutine function as a test."""

    @functools.wraps(scenario)
    def test(**given: Any) -> None:
        uvloop.run(asyncio.wait_for(scenario(**given), 20))

    return test


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


@played
async def test_vllm_counts_what_it_pulled_as_cached_and_only_the_prefill_knows_better() -> None:
    async with pair("vllm") as both:
        got = await both.answer(WHOLE, await both.ticket(WHOLE))
        assert json.loads(got.body)["usage"]["prompt_tokens_details"] == {"cached_tokens": len(WHOLE.wish.prompt) - 1}
        assert judge(WHOLE, got).reason == "cached tokens that are not those of the prefill"
        got.body = corrected(WHOLE, got.body)
        assert judge(WHOLE, got).outcome == "ok"


@pytest.mark.parametrize("dialect", ["vllm", "native"])
@pytest.mark.parametrize("one", [WHOLE, CHAT, STREAM], ids=lambda one: one.kind)
@played
async def test_a_ticket_gives_the_right_answer_once(dialect: Dialect, one: Ask) -> None:
    async with pair(dialect) as both:
        assert await both.outcome(one, await both.ticket(one)) == "ok"
        assert not both.prefill.tickets.held
        assert not both.decode.account.misuse
        assert both.decode.account.endings == {"finished": 1, "aborted": 0, "failed": 0}


async def used(both: Pair) -> Json:
    ticket = await both.ticket(WHOLE)
    await both.answer(WHOLE, ticket)
    return ticket


async def foreign(both: Pair) -> Json:
    return await both.ticket(WHOLE) | {"remote_request_id": "cmpl-of-nobody"}


async def expired(both: Pair) -> Json:
    ticket = await both.ticket(WHOLE)
    await until(lambda: not both.prefill.tickets.held)
    return ticket


async def released(both: Pair) -> Json:
    ticket = await both.ticket(WHOLE)
    await both.post(both.prefill, "/mock/give_back", {"ticket": ticket["remote_request_id"]})
    return ticket


async def other_prompt(both: Pair) -> Json:
    return await both.ticket(STREAM)


@pytest.mark.parametrize("misused", [used, foreign, expired, released, other_prompt], ids=lambda how: how.__name__)
@played
async def test_a_misused_ticket_gives_wrong_tokens_with_vllm(misused: Callable[[Pair], Any]) -> None:
    async with pair("vllm", lease_s=0.3 if misused is expired else 30.0) as both:
        got = await both.answer(WHOLE, await misused(both))
        assert got.status == 200
        assert judge(WHOLE, got).outcome == "wrong"
        assert both.decode.account.misuse == [f"a ticket that is {misused.__name__.replace('_', ' ')}"]


@pytest.mark.parametrize("misused", [used, foreign, expired, released, other_prompt], ids=lambda how: how.__name__)
@played
async def test_a_misused_ticket_is_refused_natively(misused: Callable[[Pair], Any]) -> None:
    async with pair("native", lease_s=0.3 if misused is expired else 30.0) as both:
        got = await both.answer(WHOLE, await misused(both))
        assert (got.status, json.loads(got.body)["error"]["code"]) == (502, "generation_failed")
        assert both.decode.account.refused == [misused.__name__.replace("_", " ")]


@pytest.mark.parametrize("dialect", ["vllm", "native"])
@played
async def test_no_ticket_gives_wrong_tokens_unless_that_is_allowed(dialect: Dialect) -> None:
    async with pair(dialect) as both:
        assert await both.outcome(WHOLE, None) == "wrong"
        assert both.decode.account.misuse == ["no ticket"]
        await both.post(both.decode, "/mock/settings", {"lone": True})
        assert await both.outcome(WHOLE, None) == "ok"


@pytest.mark.parametrize("dialect", ["vllm", "native"])
@played
async def test_the_prefill_side_does_the_whole_work_no_more_than_decode(dialect: Dialect) -> None:
    async with pair(dialect) as both:
        swapped = Pair(both.decode, both.prefill, both.http)
        assert await swapped.outcome(WHOLE, None) == "wrong"
        assert both.prefill.account.misuse == ["no ticket"]


@played
async def test_a_ticket_is_one_choices_with_vllm() -> None:
    async with pair("vllm") as both:
        assert await both.outcome(SEVERAL, await both.ticket(SEVERAL)) == "wrong"
        assert both.decode.account.misuse == ["several choices on one ticket"]
    async with pair("native") as both:
        assert await both.outcome(SEVERAL, await both.ticket(SEVERAL)) == "ok"


@pytest.mark.parametrize(("dialect", "status"), [("vllm", 500), ("native", 502)])
@played
async def test_a_ticket_of_a_process_that_is_gone_is_an_honest_failure(dialect: Dialect, status: int) -> None:
    async with pair(dialect) as both:
        ticket = await both.ticket(WHOLE)
        assert (await both.answer(WHOLE, ticket | {"remote_engine_id": "engine-of-before"})).status == status
        assert (await both.answer(WHOLE, ticket | {"remote_port": 1})).status == status
        streamed = await both.answer(STREAM, ticket | {"remote_port": 1})
        assert judge(STREAM, streamed).outcome == "failed"
        assert streamed.status == (200 if dialect == "vllm" else status)
        assert not both.decode.account.misuse


@played
async def test_misuse_counts_when_it_is_answered_to() -> None:
    async with pair("vllm") as both:
        ticket = await used(both)
        await both.post(both.decode, "/mock/settings", {"step_s": 5.0})
        with suppress(TimeoutError):
            await asyncio.wait_for(both.answer(WHOLE, ticket), 0.2)
        await until(lambda: both.decode.account.endings["aborted"] == 1)
        assert not both.decode.account.misuse


@played
async def test_an_early_ticket_can_be_used_while_the_prefill_goes_on() -> None:
    async with pair("native") as both:
        await both.post(both.prefill, "/mock/settings", {"prefill_s": 0.3})
        body = WHOLE.body | KEEP | {"stream": True}
        async with both.http.post(f"http://127.0.0.1:{both.prefill.port}{WHOLE.path}", json=body) as leg:
            first = json.loads((await leg.content.readline()).removeprefix(b"data: "))
            ticket = first["kv_transfer_params"]
            assert (ticket["remote_block_ids"], ticket["remote_blocks_expiry_time"]) == ([[]], None)
            assert await both.outcome(WHOLE, ticket) == "ok"
            rest = [line for line in (await leg.read()).splitlines() if line]
        assert json.loads(rest[0].removeprefix(b"data: "))["kv_transfer_params"]["remote_block_ids"] != [[]]
        assert rest[-1] == b"data: [DONE]"


@played
async def test_a_stream_of_vllms_prefill_carries_the_ticket_at_its_end() -> None:
    async with pair("vllm") as both:
        body = WHOLE.body | KEEP | {"stream": True}
        _, told = await both.post(both.prefill, WHOLE.path, body)
        with_ticket = [b"kv_transfer_params" in line for line in told.splitlines() if line]
        assert with_ticket == [True, False]


@played
async def test_a_prefill_whose_client_leaves_or_whose_ticket_is_released_holds_nothing() -> None:
    async with pair("native") as both:
        await both.post(both.prefill, "/mock/settings", {"prefill_s": 5.0})
        with suppress(TimeoutError):
            await asyncio.wait_for(both.post(both.prefill, WHOLE.path, WHOLE.body | KEEP), 0.2)
        await until(lambda: both.prefill.account.endings["aborted"] == 1)
        assert not both.prefill.tickets.held
        leg = asyncio.create_task(both.post(both.prefill, WHOLE.path, WHOLE.body | KEEP))
        await until(lambda: bool(both.prefill.tickets.held))
        (ticket,) = both.prefill.tickets.held
        _, told = await both.post(both.prefill, "/tandem/release", {"ticket": ticket.name})
        assert json.loads(told) == {"released": True}
        status, body = await leg
        assert (status, json.loads(body)["error"]["code"]) == (409, "ticket_released")


@played
async def test_a_decode_that_is_left_before_the_blocks_are_there_gives_the_ticket_back() -> None:
    async with pair("native") as both:
        await both.post(both.prefill, "/mock/settings", {"prefill_s": 5.0})
        leg = asyncio.create_task(both.post(both.prefill, WHOLE.path, WHOLE.body | KEEP))
        await until(lambda: bool(both.prefill.tickets.held))
        (ticket,) = both.prefill.tickets.held
        params = both.prefill.tickets.params(ticket, native=True)
        for kept in (True, False):
            with suppress(TimeoutError):
                await asyncio.wait_for(both.answer(WHOLE, params | {"release_on_abort": not kept}), 0.2)
            await asyncio.sleep(0.1)
            assert bool(both.prefill.tickets.held) == kept
        assert (await leg)[0] == 409


@played
async def test_what_is_held_is_told() -> None:
    async with pair("native", lease_s=0.3) as both:
        await both.ticket(WHOLE)
        _, told = await both.post(both.decode, "/tandem/reserve", {"tokens": 50})
        name = json.loads(told)["reservation"]
        states = [json.loads((await server.state(None)).body) for server in (both.prefill, both.decode)]
        assert (states[0]["leases"], states[1]["reservations"]) == (1, 1)
        assert states[0]["blocks"] > 0
        assert (await both.post(both.decode, "/tandem/release", {"reservation": name}))[1] == b'{"released": true}'
        await until(lambda: not both.prefill.tickets.held)
        assert both.prefill.tickets.ends == {"expired": 1}


@played
async def test_resume_goes_on_where_it_broke_off() -> None:
    async with pair("native") as both:
        whole = CHAT.expected[0]
        resume = {"output_token_ids": whole.tokens[:7], "sent": 20}
        body = CHAT.body | {"resume": resume, "return_token_ids": True}
        _, told = await both.post(both.decode, CHAT.path, body)
        events = [json.loads(line[6:]) for line in told.splitlines() if line.startswith(b"data: {")]
        choices = [choice for event in events for choice in event["choices"]]
        assert "".join(choice["delta"].get("content", "") for choice in choices) == whole.text[20:]
        assert tuple(token for choice in choices for token in choice["token_ids"]) == whole.tokens[7:]
        assert not any("role" in choice["delta"] for choice in choices)
        assert events[-1]["usage"]["completion_tokens"] == len(whole.tokens)
        assert not both.decode.account.misuse


@played
async def test_a_chat_goes_on_from_given_prompt_ids_with_vllm() -> None:
    async with pair("vllm") as both:
        ids = [*CHAT.wish.prompt, *CHAT.expected[0].tokens[:7]]
        more = {"prompt_token_ids": ids}
        ticket = await both.ticket(CHAT, kv_transfer_params={"do_remote_decode": True, **more})
        left = len(CHAT.expected[0].tokens) - 7
        body = CHAT.body | {"stream": False, "stream_options": None, "max_tokens": left}
        _, told = await both.post(both.decode, CHAT.path, body | {"kv_transfer_params": ticket | more})
        assert tuple(json.loads(told)["choices"][0]["token_ids"]) == CHAT.expected[0].tokens[7:]
        assert not both.decode.account.misuse


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ({"kind": "status", "status": 503}, "failed"),
        ({"kind": "reset"}, "failed"),
        ({"kind": "empty"}, "wrong"),
        ({"kind": "cut", "after": 3}, "failed"),
        ({"kind": "cut cleanly", "after": 3}, "wrong"),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("one", [WHOLE, STREAM], ids=["whole", "stream"])
@played
async def test_a_fault_fails_answers_until_it_is_over(fault: Json, outcome: str, one: Ask) -> None:
    async with pair("vllm") as both:
        await both.post(both.decode, "/mock/fault", fault | {"count": 1})
        assert await both.outcome(one, await both.ticket(one)) == outcome
        assert await both.outcome(one, await both.ticket(one)) == "ok"


@played
async def test_dead_connections_say_nothing_and_new_ones_work() -> None:
    async with pair("vllm") as both:
        await both.post(both.decode, "/mock/settings", {"step_s": 0.02})
        ticket = await both.ticket(STREAM)
        stream = asyncio.create_task(both.answer(STREAM, ticket))
        await until(lambda: both.decode.account.tokens > 3)
        await both.post(both.decode, "/mock/half_open", None)
        await until(lambda: both.decode.account.endings["finished"] == 1)
        assert await both.outcome(WHOLE, await both.ticket(WHOLE)) == "ok"
        assert not stream.done()
        stream.cancel()


@played
async def test_vllms_helpers_for_texts() -> None:
    async with pair("vllm") as both:
        _, told = await both.post(both.decode, "/tokenize", {"prompt": WHOLE.body["prompt"]})
        assert tuple(json.loads(told)["tokens"]) == WHOLE.wish.prompt
        _, told = await both.post(both.decode, "/detokenize", {"tokens": STREAM.expected[0].tokens})
        assert json.loads(told)["prompt"].startswith(STREAM.expected[0].text)


@played
async def test_the_native_dialect_refuses_what_it_does_not_know() -> None:
    async with pair("native") as both:
        status, told = await both.post(both.decode, WHOLE.path, WHOLE.body | {"colour": "red"})
        assert (status, b"colour" in told) == (400, True)
    async with pair("vllm") as both:
        assert (await both.post(both.prefill, WHOLE.path, WHOLE.body | KEEP | {"colour": "red"}))[0] == 200
        assert (await both.post(both.prefill, "/tandem/release", {}))[0] == 404
