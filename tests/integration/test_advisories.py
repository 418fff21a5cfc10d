"""What others were attacked with in September 2026, and tickets that are no good: refused, with a reason, at no cost.

CVE-2026-94622: incomplete hand-off fields ended the process. CVE-2026-94623: so did several prompts beside a ticket.
CVE-2026-94624: addresses that the client chose used up the sockets. CVE-2026-94627: requests of one id lost blocks.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import combinations
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from chaos.client import KEEP
from chaos.fleet import Shape
from chaos.standing import Standing, standing

from tandem.kv.messages import Granted, Waiting, frame
from tandem.protocol import sse

NEEDED = ("remote_engine_id", "remote_request_id", "remote_host", "remote_port")
LEASE = 8.0
"""Seconds; on a loaded machine an attacked instance may need several until it renews the lease of another's ticket."""
SILENCE = 1.0
PATIENCE = 60.0
"""Seconds that nothing takes, however loaded the machine: after them it hangs."""

SHAPE = Shape(
    prefill=1,
    decode=1,
    transports=("auto",),
    policies=("fail",),
    options={
        "kv-cache-gib": 0.004,
        "max-num-seqs": 64,
        "max-num-batched-tokens": 64,
        "kv-lease-seconds": LEASE,
        "transfer-timeout": SILENCE,
    },
)


@pytest.fixture(scope="module")
def there(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    with standing(SHAPE, tiny_model, tmp_path_factory.mktemp("advisories")) as there:
        yield there


@pytest.fixture(autouse=True)
def nothing_stays(there: Standing) -> Iterator[None]:
    """After every test both processes are the same ones, serve, and have all their blocks."""
    pids = there.prefill.pid, there.decode.pid
    yield
    if there.prefill.incarnation > 1:
        pids = there.prefill.pid, pids[1]
    assert there.do(there.fleet.quiet(LEASE + PATIENCE)) is not None, there.do(there.fleet.audits())
    assert (there.prefill.pid, there.decode.pid) == pids
    assert there.do(whole(there, prompt(999)))[0] == 200


def prompt(number: int, length: int = 40) -> list[int]:
    return [3 + (number * 131 + place * 7) % 500 for place in range(length)]


def question(tokens: list[int], count: int = 6) -> dict[str, Any]:
    return {"prompt": tokens, "max_tokens": count, "temperature": 0, "ignore_eos": True, "return_token_ids": True}


async def ticket(there: Standing, tokens: list[int], **headers: str) -> dict[str, Any]:
    status, answer = await there.ask(there.prefill, question(tokens) | KEEP, **headers)
    assert status == 200
    return answer["kv_transfer_params"]


async def show(there: Standing, params: Any, tokens: list[int], **headers: str) -> tuple[int, dict[str, Any]]:
    return await there.ask(there.decode, question(tokens) | {"kv_transfer_params": params}, **headers)


async def whole(there: Standing, tokens: list[int]) -> tuple[int, dict[str, Any]]:
    return await show(there, await ticket(there, tokens), tokens)


async def counts(there: Standing) -> list[dict[str, int]]:
    return [{k: v for k, v in audit.items() if k != "known"} for audit in (await there.fleet.audits()).values()]


SUBSETS = [missing for count in range(1, len(NEEDED) + 1) for missing in combinations(NEEDED, count)]
MISTYPED = [
    *((name, value) for name in NEEDED[:3] for value in (7, ["x"], {"x": 1}, True, "", "a b", "x" * 300, "\0")),
    *(("remote_port", value) for value in ("80", [80], {}, True, -1, 0, 65536, 2**70, 1.5)),
    *(("remote_block_ids", value) for value in (7, "x", [1], [["x"]], [[-1]], {"0": 1})),
    *(("remote_num_tokens", value) for value in ("x", [], 0, -5, 1.5)),
    *(("tp_size", value) for value in ("x", None, 0, -1, [])),
    *(("transfer_mode", value) for value in (1, "push", [])),
    *(("remote_blocks_expiry_time", value) for value in ("soon", [], {})),
    *(("release_on_abort", value) for value in ("yes", 1, None)),
]


@pytest.mark.parametrize("stream", [False, True])
def test_incomplete_hand_off_fields_are_refused_by_name(there: Standing, stream: bool) -> None:
    """CVE-2026-94622."""
    good = {"do_remote_prefill": True, "remote_engine_id": "e", "remote_request_id": "t", "remote_host": "127.0.0.1"}
    good |= {"remote_port": 9, "remote_block_ids": [[0]], "remote_num_tokens": 3, "tp_size": 1}

    async def refused(params: dict[str, Any], names: tuple[str, ...]) -> None:
        body = question(prompt(0)) | {"kv_transfer_params": params, "stream": stream}
        status, answer = await there.ask(there.decode, body)
        told = answer["error"]["message"]
        assert status == 400, f"{params}: {told}"
        assert any(f"kv_transfer_params.{name}" in told for name in names), f"{params}: {told}"

    async def scenario() -> None:
        for missing in SUBSETS:
            for emptied in ({}, dict.fromkeys(missing), dict.fromkeys(missing, "")):
                if emptied and "" in emptied.values() and "remote_port" in missing:
                    continue  # a text is no port: that is another refusal
                await refused({k: v for k, v in good.items() if k not in missing} | emptied, missing)
        for name, value in MISTYPED:
            await refused(good | {name: value}, (name,))
        await refused({k: v for k, v in good.items() if k != "do_remote_prefill"}, ("do_remote_prefill",))

    there.do(scenario())


@pytest.mark.parametrize("params", [7, "x", [], [{}], True])
def test_hand_off_fields_that_are_no_object_are_refused(there: Standing, params: Any) -> None:
    status, answer = there.do(show(there, params, prompt(1)))
    assert status == 400
    assert "kv_transfer_params" in answer["error"]["message"]


def test_both_directions_at_once_and_the_wrong_side_are_refused(there: Standing) -> None:
    async def scenario() -> None:
        params = await ticket(there, prompt(2))
        for instance, wrong in (
            (there.decode, params | {"do_remote_decode": True}),
            (there.decode, {"do_remote_decode": True}),
            (there.prefill, params),
        ):
            status, answer = await there.ask(instance, question(prompt(2)) | {"kv_transfer_params": wrong})
            assert (status, "kv_transfer_params" in answer["error"]["message"]) == (400, True)
        await there.ask(there.prefill, {"ticket": params["remote_request_id"]}, "/tandem/release")

    there.do(scenario())


@pytest.mark.parametrize("prompts", [["a", "b"], [[5, 6], [7, 8]], [[5], "b"], [], [[]], [5, "b"], [["a"]]])
def test_several_prompts_beside_a_ticket_are_refused_and_it_is_given_back(there: Standing, prompts: list) -> None:
    """CVE-2026-94623."""

    async def scenario() -> None:
        params = await ticket(there, prompt(3))
        for stream in (False, True):
            body = question(prompts) | {"kv_transfer_params": params, "stream": stream}
            for n in (1, 2):
                status, answer = await there.ask(there.decode, body | {"n": n})
                assert status == 400
                assert "prompt" in answer["error"]["message"]
        took = await there.fleet.quiet(LEASE / 2)
        assert took is not None, "the ticket was not given back"

    there.do(scenario())


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(random.Random(0).randbytes(4096))


async def talkative(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for byte in frame(Granted("tcp", 1, 5)):
        writer.write(bytes([byte]))
        await asyncio.sleep(0.2)


async def boastful(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\xff\xff\xff\xff" + b"x" * 1000)
    await reader.read()


async def granting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Keeps to the protocol and then says nothing."""
    writer.write(frame(Granted("tcp", 1, 5)) + frame(Waiting()))
    await reader.read()


async def stalling(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Keeps to the protocol and is never ready."""
    writer.write(frame(Granted("tcp", 1, 5)))
    while not writer.is_closing():
        writer.write(frame(Waiting()))
        await asyncio.sleep(0.1)


SPEAKERS = (garbage, talkative, mute, dripping, boastful, granting)


@asynccontextmanager
async def speaker(speak: Any) -> AsyncIterator[int]:
    """Its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await speak(reader, writer)
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=512)
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def black_hole(_: Any) -> AsyncIterator[int]:
    """A port whose queue is full, so that the kernel answers nobody."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(sock.getsockname())
            yield sock.getsockname()[1]
        finally:
            for filler in fillers:
                filler.close()


@asynccontextmanager
async def closed(_: Any) -> AsyncIterator[int]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    yield port


PLACES = [(closed, None), (black_hole, None), *((speaker, speak) for speak in SPEAKERS)]


@pytest.mark.full
@pytest.mark.parametrize(("place", "speak"), PLACES, ids=[(speak or place).__name__ for place, speak in PLACES])
def test_addresses_of_the_clients_choice_do_not_use_up_sockets(there: Standing, place: Any, speak: Any) -> None:
    """CVE-2026-94624: three times as many as are admitted at once, and others between them."""
    count = 3 * SHAPE.options["max-num-seqs"]

    async def scenario() -> None:
        await whole(there, prompt(4))
        before, begun = there.decode.descriptors, time.monotonic()
        async with place(speak) as port:
            params = {"do_remote_prefill": True, "remote_engine_id": "e", "remote_request_id": "t"}
            params |= {"remote_host": "127.0.0.1", "remote_port": port}
            attack = [asyncio.create_task(show(there, params, prompt(5))) for _ in range(count)]
            await asyncio.sleep(0.05)
            other = await asyncio.wait_for(whole(there, prompt(6)), PATIENCE)
            answers = await asyncio.gather(*attack)
        seconds = time.monotonic() - begun
        assert other[0] == 200, other[1]
        assert {status for status, _ in answers} == {502}
        assert all("127.0.0.1" in answer["error"]["message"] for _, answer in answers)
        assert seconds < count * SILENCE / 4, "they are waited for one after the other"
        limit = time.monotonic() + PATIENCE
        while there.decode.descriptors > before + 3:
            assert time.monotonic() < limit, f"{there.decode.descriptors} descriptors are open, {before} were"
            await asyncio.sleep(0.05)

    there.do(scenario())


def test_a_holder_that_is_never_ready_is_waited_for_as_long_as_the_client_says(there: Standing) -> None:
    """It looks like a long prefill, so only the deadline, or the client's leaving, ends the wait."""

    async def scenario() -> None:
        async with speaker(stalling) as port:
            params = {"do_remote_prefill": True, "remote_engine_id": "e", "remote_request_id": "t"}
            body = question(prompt(17)) | {
                "kv_transfer_params": params | {"remote_host": "127.0.0.1", "remote_port": port}
            }
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(there.ask(there.decode, body), 2 * SILENCE)
            assert await there.fleet.quiet(PATIENCE) is not None
            status, answer = await there.ask(there.decode, body | {"deadline_seconds": 1})
            assert (status, "deadline_seconds" in answer["error"]["message"]) == (504, True)

    there.do(scenario())


@pytest.mark.parametrize("host", ["localhost.invalid", "256.1.1.1", "::1", "a" * 255, "-"])
def test_hosts_that_are_not_there_fail_with_a_reason(there: Standing, host: str) -> None:
    params = {"do_remote_prefill": True, "remote_engine_id": "e", "remote_request_id": "t", "remote_host": host}
    status, answer = there.do(show(there, params | {"remote_port": 9}, prompt(7)))
    assert status == 502
    assert "not reachable" in answer["error"]["message"] or "broke off" in answer["error"]["message"]


def test_requests_of_one_id_are_different_requests(there: Standing) -> None:
    """CVE-2026-94627, with answers, streams, clients that leave, and equal prompts."""
    same = {"X-Request-Id": "same"}

    async def one(number: int) -> list[int] | None:
        tokens = prompt(number % 5)
        params = await ticket(there, tokens, **same)
        if number % 7 == 3:
            with suppress(TimeoutError):
                await asyncio.wait_for(show(there, params, tokens, **same), 0.005)
            return None
        status, answer = await show(there, params, tokens, **same)
        assert status == 200, answer
        return answer["choices"][0]["token_ids"]

    async def scenario() -> None:
        answers = await asyncio.gather(*(one(number) for number in range(60)))
        for which in range(5):
            alike = {json.dumps(answer) for answer in answers[which::5] if answer is not None}
            assert len(alike) == 1

    there.do(scenario())


@pytest.mark.parametrize("early", [False, True])
def test_a_ticket_shown_by_many_is_used_once(there: Standing, early: bool) -> None:
    tokens = prompt(8, 200)

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            if early:
                body = question(tokens) | KEEP | {"stream": True}
                answer = await stack.enter_async_context(
                    there.fleet.http.post(f"{there.prefill.url}/v1/completions", json=body)
                )
                events = sse.events(answer.content.iter_any())
                params = (await anext(events))["kv_transfer_params"]
                stack.push_async_callback(_read, events)
            else:
                params = await ticket(there, tokens)
            await shown(params)

    async def shown(params: dict[str, Any]) -> None:
        same = {"X-Request-Id": "same"}
        answers = await asyncio.gather(*(show(there, params, tokens, **same) for _ in range(30)))
        assert sorted({status for status, _ in answers}) == [200, 502]
        assert sum(status == 200 for status, _ in answers) == 1
        for status, answer in answers:
            if status == 502:
                told = answer["error"]["message"]
                assert any(reason in told for reason in ("used up", "used or expired", "lease ended")), told

    there.do(scenario())


async def _read(events: AsyncIterator[Any]) -> None:
    async for _ in events:
        pass


def test_tickets_that_are_no_good_are_refused_and_cost_nothing(there: Standing) -> None:
    async def scenario() -> None:
        tokens = prompt(9)
        good = await ticket(there, tokens)
        before = await counts(there)
        kept = {"release_on_abort": False}
        for change, asked, reason in [
            ({"remote_request_id": "0" * 32}, tokens, "unknown here"),
            ({"remote_request_id": good["remote_request_id"][:-1]}, tokens, "unknown here"),
            ({"remote_engine_id": "another"}, tokens, "earlier process"),
            ({}, prompt(10), "another prompt"),
            ({}, tokens[:-1], "another prompt"),
            ({}, [*tokens, 5], "another prompt"),
        ]:
            status, answer = await show(there, good | kept | change, asked)
            assert (status, reason in answer["error"]["message"]) == (502, True), answer
            assert await counts(there) == before
        salted = question(tokens) | {"kv_transfer_params": good | kept, "cache_salt": "mine"}
        status, answer = await there.ask(there.decode, salted)
        assert (status, "another prompt" in answer["error"]["message"]) == (502, True)
        assert await counts(there) == before
        assert (await show(there, good, tokens))[0] == 200
        for again in range(2):
            status, answer = await show(there, good, tokens)
            assert (status, "used up" in answer["error"]["message"]) == (502, True), again

    there.do(scenario())


def test_the_number_of_choices_must_be_the_tickets(there: Standing) -> None:
    async def scenario() -> None:
        params = await ticket(there, prompt(11))
        body = question(prompt(11)) | {"kv_transfer_params": params, "n": 2}
        status, answer = await there.ask(there.decode, body)
        assert (status, "n=1" in answer["error"]["message"]) == (502, True)

    there.do(scenario())


@pytest.mark.full
def test_expired_and_released_tickets_are_refused(there: Standing) -> None:
    async def scenario() -> None:
        expiring, released = await ticket(there, prompt(12)), await ticket(there, prompt(13))
        path = "/tandem/release"
        assert (await there.ask(there.prefill, {"ticket": released["remote_request_id"]}, path))[1]["released"]
        await asyncio.sleep(LEASE + 0.3)
        before = await counts(there)
        for params, number in ((expiring, 12), (released, 13)):
            status, answer = await show(there, params, prompt(number))
            assert (status, "expired or unknown" in answer["error"]["message"]) == (502, True)
            assert await counts(there) == before

    there.do(scenario())


def test_a_prefill_whose_ticket_is_released_ends_for_whoever_asked_for_it(there: Standing) -> None:
    """Not only for who has the ticket: an early one is released while the prefill goes on."""
    tokens = prompt(14, 220)

    async def scenario() -> None:
        body = question(tokens) | KEEP | {"stream": True}
        async with there.fleet.http.post(f"{there.prefill.url}/v1/completions", json=body) as answer:
            events = sse.events(answer.content.iter_any())
            early = (await anext(events))["kv_transfer_params"]
            fields = {"ticket": early["remote_request_id"]}
            assert (await there.ask(there.prefill, fields, "/tandem/release"))[1]["released"]
            async with asyncio.timeout(PATIENCE):
                rest = [event async for event in events]
        assert "released" in json.dumps(rest[-1])

    there.do(scenario())


def test_strangers_at_the_kv_port_do_no_harm(there: Standing) -> None:
    """Connections that say nothing, nonsense, or half a message, more than are served at once."""

    async def scenario() -> None:
        before = there.prefill.descriptors
        rng = random.Random(1)
        socks = []
        for number in range(300):
            sock = socket.socket()
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", there.prefill.kv_port))
            if number % 3:
                sock.send(rng.randbytes(rng.randint(1, 400)))
            socks.append(sock)
        assert (await whole(there, prompt(15)))[0] == 200
        limit = time.monotonic() + PATIENCE
        while there.prefill.descriptors > before + 3:
            assert time.monotonic() < limit, "the connections of strangers stay"
            await asyncio.sleep(0.05)
        for sock in socks:
            sock.close()

    there.do(scenario())


def test_tickets_of_an_earlier_process_are_refused(there: Standing) -> None:
    """It starts the prefill instance again, on its ports."""

    async def scenario() -> None:
        params = await ticket(there, prompt(16))
        there.prefill.condemn()
        there.prefill.kill()
        with pytest.raises(aiohttp.ClientError):
            await there.prefill.audit(there.fleet.http)
        status, answer = await show(there, params, prompt(16))
        assert (status, "not reachable" in answer["error"]["message"]) == (502, True), answer
        await there.fleet.revive(there.prefill)
        before = await counts(there)
        status, answer = await show(there, params, prompt(16))
        assert (status, "earlier process" in answer["error"]["message"]) == (502, True), answer
        assert await counts(there) == before

    there.do(scenario())
