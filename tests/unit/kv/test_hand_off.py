"""Both ends of a hand-off over real sockets: every byte arrives where it belongs, and every failure says why."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest
import uvloop
from hand_off_rig import (
    FAKE,
    LARGE,
    SMALL,
    TICKET,
    UNTOUCHED,
    assert_arrived,
    empty,
    holding,
    listening,
    pull,
    request,
    serving,
    until,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tandem.errors import TransferError, UsageError
from tandem.kv import nixl, shared_memory
from tandem.kv.fake_holder import ENGINE, FakeHolder
from tandem.kv.messages import (
    MAX_REQUEST,
    Confirmed,
    Finished,
    Granted,
    Keep,
    Pull,
    Ready,
    Refused,
    Release,
    Waiting,
    frame,
)
from tandem.kv.puller import Peer, Puller
from tandem.kv.server import TransferServer

COUNTS = [1, 2, 4, 8]
TRANSPORTS = [
    "fake",
    "shm",
    "tcp",
    pytest.param("nixl", marks=pytest.mark.skipif(not nixl.installed(), reason="the nixl package is not installed")),
]
every_transport = pytest.mark.parametrize("transport", TRANSPORTS)


@every_transport
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_head_of_every_block_arrives_whatever_the_ranks(
    transport: str, run: Callable[[Any], None], data: st.DataObject
) -> None:
    layout = msgspec.structs.replace(
        SMALL, kv_heads=data.draw(st.sampled_from(COUNTS)), planes=data.draw(st.sampled_from([1, 2]))
    )
    ranks, our_ranks = data.draw(st.sampled_from(COUNTS)), data.draw(st.sampled_from(COUNTS))
    held, ours_in_all = 12, 16
    theirs = data.draw(st.lists(st.integers(0, held - 1), unique=True, max_size=held))
    places = st.lists(st.integers(0, ours_in_all - 1), unique=True, min_size=len(theirs), max_size=len(theirs))
    first = data.draw(st.integers(0, len(theirs)))
    ours = data.draw(places)[first:]
    ready = data.draw(st.integers(0, len(theirs)))

    async def scenario() -> None:
        shards = empty(layout, ours_in_all, our_ranks)
        holder = FakeHolder(holding(layout, held, ranks))
        ticket = holder.add(TICKET, theirs, max(ready, first))
        async with serving(holder, transports=[transport]) as peer:
            pulling = asyncio.ensure_future(pull(peer, request(first=first), shards, ours, 5, [transport]))
            while ticket.ready < len(theirs):
                await asyncio.sleep(0)
                ticket.compute(ticket.ready + 1)
            assert await pulling == b"state"
        assert_arrived(shards, theirs[first:], ours, held)
        assert ticket.ended
        assert [outgoing.closed for outgoing in holder.pulls] == [True]

    run(scenario())


@every_transport
@pytest.mark.parametrize(("ranks", "our_ranks"), [(1, 1), (1, 2), (4, 2), (8, 8)])
def test_large_blocks_arrive(transport: str, ranks: int, our_ranks: int) -> None:
    held = 40

    async def scenario() -> None:
        shards = empty(LARGE, held, our_ranks)
        holder = FakeHolder(holding(LARGE, held, ranks))
        theirs, ours = [*range(20, 40), *range(0, 20, 2)], [*range(5, 30), 39, 31, 38, 33, 2]
        holder.add(TICKET, theirs)
        async with serving(holder, transports=[transport]) as peer:
            await pull(peer, request(), shards, ours, 5, [transport])
        assert_arrived(shards, theirs, ours, held)

    asyncio.run(scenario())


@every_transport
def test_many_pulls_at_once_do_not_mix(transport: str) -> None:
    async def scenario() -> None:
        shards = empty(SMALL, 64)
        holder = FakeHolder(holding(SMALL, 64))
        order = [(place * 7) % 64 for place in range(64)]
        for name in range(16):
            holder.add(str(name), order[name * 4 : name * 4 + 4])
        async with serving(holder, transports=[transport]) as peer:
            pulls = [
                pull(peer, request(str(name)), shards, range(name * 4, name * 4 + 4), 5, [transport])
                for name in range(16)
            ]
            await asyncio.gather(*pulls)
        assert_arrived(shards, order, range(64), 64)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (request("forged"), "refused: the ticket is unknown or used"),
        (request("used"), "refused: the ticket is unknown or used"),
        (request(engine_id="an earlier process"), "refused: the ticket is another process's"),
    ],
)
@every_transport
def test_a_ticket_that_is_not_good_is_refused(transport: str, asked: Pull, reason: str) -> None:
    async def scenario() -> None:
        shards, holder = empty(SMALL, 4), FakeHolder(holding(SMALL, 4))
        holder.add("used", [0])
        async with serving(holder, transports=[transport]) as peer:
            await pull(peer, request("used"), shards, [3], 5, [transport])
            with pytest.raises(TransferError, match=reason):
                await pull(peer, asked, shards, [0], 5, [transport])
        assert_arrived(shards, [0], [3], 4)

    asyncio.run(scenario())


@every_transport
def test_a_slow_prefill_is_waited_for(transport: str) -> None:
    async def scenario() -> None:
        shards, holder = empty(SMALL, 2), FakeHolder(holding(SMALL, 2))
        ticket = holder.add(TICKET, [0, 1], ready=0)
        async with serving(holder, 0.4, [transport]) as peer:
            pulling = asyncio.ensure_future(pull(peer, request(), shards, [0, 1], 0.4, [transport]))
            for ready in (1, 2):
                await asyncio.sleep(1)
                ticket.compute(ready)
            await pulling

    asyncio.run(scenario())


@every_transport
def test_a_prefill_that_fails_is_told_at_once(transport: str) -> None:
    async def scenario() -> None:
        holder = FakeHolder(holding(SMALL, 2))
        ticket = holder.add(TICKET, [0, 1], ready=1)
        async with serving(holder, transports=[transport]) as peer:
            pulling = asyncio.ensure_future(pull(peer, request(), empty(SMALL, 2), [0, 1], 5, [transport]))
            await until(lambda: holder.pulls and holder.pulls[0].named == 1)
            ticket.fail("the prefill was aborted")
            with pytest.raises(TransferError, match="refused: the prefill was aborted"):
                await pulling
        assert holder.pulls[0].closed
        assert not ticket.ended

    asyncio.run(scenario())


@every_transport
def test_a_lease_that_ended_meanwhile_is_not_confirmed(transport: str) -> None:
    async def scenario() -> None:
        holder = FakeHolder(holding(SMALL, 2))
        ticket = holder.add(TICKET, [0, 1], ready=1)
        async with serving(holder, transports=[transport]) as peer:
            pulling = asyncio.ensure_future(pull(peer, request(), empty(SMALL, 2), [0, 1], 5, [transport]))
            await until(lambda: holder.pulls)
            ticket.ended = True
            ticket.compute(2)
            with pytest.raises(TransferError, match="refused: the lease ended before everything had arrived"):
                await pulling

    asyncio.run(scenario())


def test_a_pull_that_breaks_off_leaves_the_ticket_good(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        holder, shards = FakeHolder(holding(SMALL, 4)), empty(SMALL, 4)
        ticket = holder.add(TICKET, range(4))
        async with serving(holder, transports=["fake"]) as peer:
            monkeypatch.setattr(FAKE, "breaks_after", FAKE.arrived + 2)
            with pytest.raises(TransferError, match=r"broke off \(the connection was lost\)"):
                await pull(peer, request(), shards, range(4), 5, ["fake"])
            await until(lambda: holder.pulls[0].closed)
            assert not ticket.ended
            assert_arrived(shards, [0, 1], [0, 1], 4)
            monkeypatch.undo()
            await pull(peer, request(), shards, range(4), 5, ["fake"])
        assert ticket.ended
        assert_arrived(shards, range(4), range(4), 4)

    asyncio.run(scenario())


def test_a_pull_that_is_cancelled_between_two_blocks_writes_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(FAKE, "goes_on", asyncio.Event())
        holder, shards = FakeHolder(holding(SMALL, 4)), empty(SMALL, 4)
        ticket = holder.add(TICKET, range(4))
        async with serving(holder, transports=["fake"]) as peer:
            pulling = asyncio.ensure_future(pull(peer, request(), shards, range(4), 5, ["fake"]))
            await until(lambda: holder.pulls and holder.pulls[0].named == 4)
            pulling.cancel()
            with suppress(asyncio.CancelledError):
                await pulling
            assert FAKE.goes_on is not None
            FAKE.goes_on.set()
            await until(lambda: holder.pulls[0].closed)
        assert_arrived(shards, [], [], 4)
        assert not ticket.ended

    asyncio.run(scenario())


def test_a_ticket_over_more_blocks_than_the_prompt_has_is_not_taken() -> None:
    async def scenario() -> None:
        holder = FakeHolder(holding(SMALL, 4))
        holder.add(TICKET, range(4))
        shards = empty(SMALL, 4)
        async with serving(holder) as peer:
            with pytest.raises(TransferError, match="it has 4 blocks, this prompt has 3"):
                await pull(peer, request(first=1), shards, [0, 1], 5)
            await until(lambda: holder.pulls[0].closed)
        assert_arrived(shards, [], [], 4)

    asyncio.run(scenario())


def test_no_transport_in_common_is_said() -> None:
    async def scenario() -> None:
        holder = FakeHolder(holding(SMALL, 1))
        async with serving(holder, transports=["shm"]) as peer:
            with pytest.raises(TransferError, match=r"refused: no common transport: it has \['shm'\]"):
                await pull(peer, request(), empty(SMALL, 1), [], 5, ["tcp"])
            with pytest.raises(TransferError, match="no common transport"):  # over TCP no memory can be shared
                await pull(Peer(peer.host, peer.port, "elsewhere"), request(), empty(SMALL, 1), [], 5)
            with pytest.raises(TransferError, match=r"shm works within one host, .*--kv-transport auto or tcp"):
                await pull(Peer(peer.host, peer.port, "elsewhere"), request(), empty(SMALL, 1), [], 5, ["shm"])

    asyncio.run(scenario())


def test_a_transport_that_cannot_be_had_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nixl, "installed", lambda: False)
    monkeypatch.setattr(shared_memory, "CAN_SHARE", False)
    shards = holding(SMALL, 1)
    with listening() as listener, pytest.raises(UsageError, match=r"--kv-transport nixl: .*pip install -e"):
        TransferServer(FakeHolder(shards), listener, 5, ["nixl"])
    with pytest.raises(UsageError, match="--kv-transport shm: processes of this system cannot share memory on cpu"):
        Puller(shards, ["shm"], 5)
    Puller(shards, ["shm", "tcp"], 5)


@pytest.mark.parametrize("host", ["127.0.0.1", "a" * 70, ".", "no\0host"])
def test_nobody_there_is_said_at_once(host: str) -> None:
    with listening() as nobody:
        peer = Peer(host, nobody.getsockname()[1], "nobody")

    async def scenario() -> None:
        puller = Puller(empty(SMALL, 1), ["tcp"], 5)
        for act in (
            puller.pull(peer, request(), [0]),
            puller.keep(peer, Keep("nobody", []), 5),
            puller.release(peer, Release("nobody", TICKET), 5),
        ):
            with pytest.raises(TransferError, match="not reachable"):
                await act

    asyncio.run(scenario())


def test_leases_are_kept_and_released_over_the_wire() -> None:
    async def scenario() -> None:
        holder = FakeHolder(holding(SMALL, 1))
        told = [Keep(ENGINE, ["a", "b"]), Release(ENGINE, "c")]
        puller = Puller(empty(SMALL, 1), ["tcp"], 5)
        async with serving(holder) as peer:
            await puller.keep(peer, told[0], 5)
            await until(lambda: len(holder.told) == 1)
            await puller.release(peer, told[1], 5)
            await until(lambda: len(holder.told) == 2)
        assert holder.told == told

    asyncio.run(scenario())


def test_leases_of_any_number_of_tickets_are_kept() -> None:
    tickets = [f"{number:032x}" for number in range(5000)]

    async def scenario() -> None:
        holder = FakeHolder(holding(SMALL, 1))
        async with serving(holder) as peer:
            await Puller(empty(SMALL, 1), ["tcp"], 5).keep(peer, Keep(ENGINE, [*tickets, "x" * MAX_REQUEST]), 5)
            await until(lambda: sum(len(keep.tickets) for keep in holder.told) == len(tickets))
        assert sorted(ticket for keep in holder.told for ticket in keep.tickets) == tickets

    asyncio.run(scenario())


def test_a_frozen_holder_is_given_up() -> None:
    with socket.socket() as frozen:
        frozen.bind(("127.0.0.1", 0))
        frozen.listen()
        peer = Peer("127.0.0.1", frozen.getsockname()[1], "frozen")
        with pytest.raises(TransferError, match=r"silent for 0\.3 s; is that instance frozen"):
            asyncio.run(pull(peer, request(), empty(SMALL, 1), [0], 0.3))


@asynccontextmanager
async def rogue(answers: bytes) -> AsyncIterator[Peer]:
    """A holder that says `answers` to everything and then nothing."""

    ended = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answers)
        with suppress(ConnectionError):
            await reader.read()
        writer.close()
        ended.set()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield Peer("127.0.0.1", server.sockets[0].getsockname()[1], "rogue")
        await ended.wait()


GRANTED = Granted("tcp", 1, 2)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([Granted("shm", 1, 2)], "wants to send by 'shm', which was not offered"),
        ([Granted("tcp", 3, 2)], "3 ranks, which do not fit"),
        ([Granted("tcp", 1, 3)], "it has 3 blocks, this prompt has 2"),
        ([GRANTED, Ready([])], "it sends 0 blocks after 0 of 2"),
        ([GRANTED, Ready([1, 2, 3])], "it sends 3 blocks after 0 of 2"),
        ([GRANTED, Finished(b"")], "it ended after 0 of 2 blocks"),
        ([GRANTED, Confirmed()], "it confirms what it has not sent"),
        ([GRANTED, Waiting(), Refused("no")], "refused: no"),
        ([GRANTED, GRANTED], "cannot be read"),
        ([Confirmed()], "cannot be read"),
        ([b"\xff\xff\xff\xff"], "over the limit"),
        ([b"HTTP/1.1 400 Bad Request\r\n"], "over the limit"),
        ([b"\0\0\0\2\xc1\xc1"], "cannot be read"),
    ],
)
def test_a_holder_that_breaks_the_rules_is_not_believed(answers: Sequence[Any], reason: str) -> None:
    async def scenario() -> None:
        shards = empty(SMALL, 2)
        async with rogue(b"".join(a if isinstance(a, bytes) else frame(a) for a in answers)) as peer:
            with pytest.raises(TransferError, match=reason):
                await pull(peer, request(), shards, [0, 1], 5)
        assert_arrived(shards, [], [], 2)

    asyncio.run(scenario())


class Proxy:
    """Passes bytes of one connection on, and does something to those that the holder sends.

    Args:
        port: The holder's.
        turn: Called with the number of bytes passed on so far and the next ones; what it gives is passed on.
    """

    def __init__(self, port: int, turn: Callable[[int, bytes], bytes]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port, self._turn = port, turn
        self.peer = Peer("127.0.0.1", self._listener.getsockname()[1], "by proxy")
        self._thread = threading.Thread(target=self._pass, daemon=True)

    async def __aenter__(self) -> Proxy:
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        await until(lambda: not self._thread.is_alive())

    def _pass(self) -> None:
        here, _ = self._listener.accept()
        with here, socket.create_connection(("127.0.0.1", self._port)) as there:
            back = threading.Thread(target=self._back, args=(here, there), daemon=True)
            back.start()
            passed = 0
            while data := there.recv(65536):
                try:
                    here.sendall(self._turn(passed, data))
                except OSError:
                    break
                passed += len(data)
            with suppress(OSError):
                there.shutdown(socket.SHUT_RDWR)
            back.join(5)

    def _back(self, here: socket.socket, there: socket.socket) -> None:
        with suppress(OSError):
            while data := here.recv(65536):
                there.sendall(data)
        with suppress(OSError):
            there.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("ranks", [1, 2])
@settings(max_examples=10, deadline=None)
@given(place=st.integers(200, 4 * LARGE.bytes_per_block), bit=st.integers(0, 7))
def test_a_bit_flipped_on_the_way_is_found(ranks: int, place: int, bit: int) -> None:
    def flip(passed: int, data: bytes) -> bytes:
        if not passed <= place < passed + len(data):
            return data
        turned = bytearray(data)
        turned[place - passed] ^= 1 << bit
        return bytes(turned)

    async def scenario() -> None:
        holder = FakeHolder(holding(LARGE, 4))
        ticket = holder.add(TICKET, range(4))
        async with serving(holder) as peer:
            async with Proxy(peer.port, flip) as proxy:
                with pytest.raises(TransferError, match="damaged on the way"):
                    await pull(proxy.peer, request(), empty(LARGE, 4, ranks), range(4), 5, ["tcp"])
            await until(lambda: holder.pulls[0].closed)
        assert not ticket.ended

    asyncio.run(scenario())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("end", ["cancelled", "silent"])
def test_nothing_is_written_after_a_pull_ended_halfway(run: Callable[[Any], None], end: str) -> None:
    go_on = threading.Event()

    def stop_halfway(passed: int, data: bytes) -> bytes:
        if passed > 3 * LARGE.bytes_per_block:
            go_on.wait(10)
        return data

    async def scenario() -> None:
        holder = FakeHolder(holding(LARGE, 8))
        holder.add(TICKET, range(8))
        shards = empty(LARGE, 8)
        here = shards.caches[0].blocks
        async with serving(holder) as peer, Proxy(peer.port, stop_halfway) as proxy:
            timeout = 30 if end == "cancelled" else 0.5
            pulling = asyncio.ensure_future(pull(proxy.peer, request(), shards, range(8), timeout, ["tcp"]))
            await until(lambda: bool((here[1] != UNTOUCHED).any()))
            if end == "cancelled":
                pulling.cancel()
            with pytest.raises((asyncio.CancelledError, TransferError)):
                await pulling
            before = here.clone()
            go_on.set()
            await until(lambda: holder.pulls[0].closed)
            await asyncio.sleep(0.1)
            assert bool((here == before).all())

    run(scenario())


def test_a_cancelled_copy_of_shared_memory_has_ended() -> None:
    async def scenario() -> None:
        count = 256
        holder = FakeHolder(holding(LARGE, count))
        shards = empty(LARGE, count)
        here = shards.caches[0].blocks
        async with serving(holder) as peer:
            for delay in range(10):
                holder.add(TICKET, range(count))
                here.fill_(UNTOUCHED)
                pulling = asyncio.ensure_future(pull(peer, request(), shards, range(count), 5, ["shm"]))
                await asyncio.sleep(delay * 0.003)
                pulling.cancel()
                await asyncio.wait([pulling])
                before = here.clone()
                await asyncio.sleep(0.02)
                assert bool((here == before).all())

    asyncio.run(scenario())
