"""One request on a connection whose other end is scripted: whatever the network cuts, the answer is the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from itertools import pairwise
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.gateway.wire.connection import FRAMING_LIMIT, HELD_LIMIT, Connection, NoHttpError, Response

T = TypeVar("T")

BODY = b'data: {"a": 1}\n\ndata: [DONE]\n\n'
SIZED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
CHUNKED = (
    b"HTTP/1.1 200 OK\r\ncontent-type:  text/event-stream \r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;name=value\r\n%b\r\n%x\r\n%b\r\n0\r\nTrailer: yes\r\n\r\n" % (BODY[:5], len(BODY) - 5, BODY[5:])
)
CLOSED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + BODY
ENDLESS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
OLD = b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
CONTINUED = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nContent-Type: x\r\n\r\n" + SIZED
KEEPING, CLOSING = (SIZED, CHUNKED, CONTINUED), (CLOSED, OLD)


class FakeTransport:
    """The other end, as far as a connection knows it."""

    def __init__(self) -> None:
        self.sent = b""
        self.is_cut = self.is_paused = False

    def get_extra_info(self, _: str) -> None:
        return None

    def is_closing(self) -> bool:
        return self.is_cut

    def writelines(self, pieces: Iterable[bytes]) -> None:
        self.sent += b"".join(pieces)

    def abort(self) -> None:
        self.is_cut = True

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


class End:
    """A connection, with what its transport and its owner see of it."""

    def __init__(self) -> None:
        self.free: list[Connection] = []
        self.transport: Any = FakeTransport()
        self.connection = Connection(self.free.append)
        self.connection.connection_made(self.transport)


def looped(scenario: Callable[[], Awaitable[T]]) -> T:
    return asyncio.run(asyncio.wait_for(scenario(), 5))


async def whole(response: Response) -> bytes:
    await response.head()
    body = b""
    while piece := await response.piece():
        body += piece
    return body


@given(answer=st.sampled_from(KEEPING + CLOSING), cuts=st.lists(st.integers(0, 250)), data=st.data())
def test_an_answer_is_the_same_however_it_is_cut(answer: bytes, cuts: list[int], data: st.DataObject) -> None:
    async def scenario() -> None:
        end = End()
        response = end.connection.send([b"head", b"body"])
        assert end.transport.sent == b"headbody"
        reading = asyncio.create_task(whole(response))
        places = sorted({0, *(cut for cut in cuts if cut < len(answer)), len(answer)})
        for begin, stop in pairwise(places):
            end.connection.data_received(answer[begin:stop])
            if data.draw(st.booleans()):
                await asyncio.sleep(0)
        if answer is CLOSED:
            end.connection.connection_lost(None)
        assert await reading == BODY
        assert (response.status, response.header("content-type")) == (200, "text/event-stream")
        response.close()
        assert bool(end.free) == (answer in KEEPING)
        assert end.transport.is_cut == (answer in CLOSING)

    looped(scenario)


@given(answer=st.sampled_from((*KEEPING, CLOSED, OLD)), keep=st.integers(0, 250), data=st.data())
def test_a_part_of_an_answer_is_no_answer(answer: bytes, keep: int, data: st.DataObject) -> None:
    async def scenario() -> None:
        end = End()
        response = end.connection.send([])
        part = answer[: min(keep, len(answer) - 1)]
        end.connection.data_received(part)
        reset = data.draw(st.sampled_from((None, ConnectionResetError())))
        end.connection.connection_lost(reset)
        if answer is CLOSED and reset is None and b"\r\n\r\n" in part:
            assert await whole(response) == part.partition(b"\r\n\r\n")[2]
        else:
            with pytest.raises(ConnectionError):
                await whole(response)
        response.close()
        assert not end.free

    looped(scenario)


@given(answer=st.sampled_from(KEEPING), junk=st.binary(min_size=1, max_size=40))
def test_whoever_says_more_than_was_asked_is_not_asked_again(answer: bytes, junk: bytes) -> None:
    async def scenario() -> None:
        end = End()
        response = end.connection.send([])
        end.connection.data_received(answer + junk)
        assert await whole(response) == BODY
        response.close()
        # Line ends between answers are allowed.
        assert bool(end.free) == (not junk.strip(b"\r\n"))

    looped(scenario)


def test_what_comes_unasked_cuts_the_connection() -> None:
    end = End()
    end.connection.data_received(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert end.transport.is_cut


@pytest.mark.parametrize(
    "said",
    [
        b"garbage\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 two OK\r\n\r\n",
        b"HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * FRAMING_LIMIT,
        b"HTTP/1.1 100 Continue\r\n\r\n" * FRAMING_LIMIT,
    ],
)
def test_what_is_no_http_is_told_as_that(said: bytes) -> None:
    async def scenario() -> None:
        end = End()
        response = end.connection.send([])
        end.connection.data_received(said)
        with pytest.raises(NoHttpError):
            await response.head()
        response.close()
        assert end.transport.is_cut

    looped(scenario)


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_garbage_ends_in_an_error_and_nothing_else(pieces: list[bytes]) -> None:
    async def scenario() -> None:
        end = End()
        response = end.connection.send([])
        for piece in pieces:
            end.connection.data_received(piece)
        end.connection.connection_lost(None)
        with pytest.raises(ConnectionError):
            await whole(response)
        response.close()

    looped(scenario)


@pytest.mark.parametrize("more", [b"0\r\nTrailer: ", b"3;extension="], ids=["trailers", "extensions"])
def test_framing_without_end_is_given_up(more: bytes) -> None:
    async def scenario() -> None:
        end = End()
        response = end.connection.send([])
        end.connection.data_received(ENDLESS + b"3\r\nabc\r\n" + more)
        assert await response.piece() == b"abc"
        for _ in range(FRAMING_LIMIT // 1000 + 1):
            end.connection.data_received(b"x" * 1000)
        with pytest.raises(NoHttpError):
            await response.piece()
        response.close()

    looped(scenario)


def test_who_reads_slowly_is_not_drowned() -> None:
    async def scenario() -> None:
        end = End()
        response = end.connection.send([])
        end.connection.data_received(ENDLESS)
        await response.head()
        sent = 0
        while not end.transport.is_paused:
            end.connection.data_received(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")
            sent += 0x1000
        assert HELD_LIMIT < sent <= HELD_LIMIT + 0x1000
        assert len(await response.piece()) == sent
        assert not end.transport.is_paused
        response.close()

    looped(scenario)


def test_what_was_received_is_read_before_the_end_is_told() -> None:
    async def scenario() -> None:
        end = End()
        response = end.connection.send([])
        end.connection.data_received(ENDLESS + b"3\r\nabc\r\n")
        end.connection.connection_lost(ConnectionResetError())
        assert await response.piece() == b"abc"
        with pytest.raises(ConnectionResetError):
            await response.piece()
        response.close()

    looped(scenario)


@pytest.mark.parametrize("said", [b"", ENDLESS, ENDLESS + b"3\r\nab"], ids=range(3))
def test_closing_wakes_the_reader_and_cuts_the_connection(said: bytes) -> None:
    async def scenario() -> None:
        end = End()
        response = end.connection.send([])
        end.connection.data_received(said)
        reading = asyncio.create_task(whole(response))
        await asyncio.sleep(0)
        response.close()
        with pytest.raises(ConnectionAbortedError):
            await reading
        assert end.transport.is_cut
        response.close()

    looped(scenario)


def test_closing_an_old_answer_leaves_the_next_one_alone() -> None:
    async def scenario() -> None:
        end = End()
        first = end.connection.send([])
        end.connection.data_received(SIZED)
        assert await whole(first) == BODY
        first.close()
        assert end.free == [end.connection]
        second = end.connection.send([])
        first.close()
        end.connection.data_received(CHUNKED)
        assert await whole(second) == BODY
        second.close()
        assert not end.transport.is_cut

    looped(scenario)


def test_a_connection_that_is_closing_takes_no_request() -> None:
    async def scenario() -> None:
        end = End()
        end.transport.abort()
        response = end.connection.send([b"x"])
        with pytest.raises(ConnectionResetError):
            await response.head()
        assert end.transport.sent == b""
        response.close()

    looped(scenario)
