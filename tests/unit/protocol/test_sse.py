"""Server-sent events, wherever the network cuts them."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.errors import ProcessError
from tandem.protocol import sse

NAMES = st.text().filter(lambda name: name != "error")
PAYLOADS = st.lists(st.dictionaries(NAMES, st.text() | st.integers(-9, 9)), max_size=6)


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted({cut % (len(stream) + 1) for cut in cuts}), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


def read(parts: list[bytes]) -> list[dict[str, Any]]:
    async def source() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    async def collect() -> list[dict[str, Any]]:
        return [event async for event in sse.events(source())]

    return asyncio.run(collect())


def test_a_line_of_many_pieces_is_not_gone_through_with_each_of_them() -> None:
    lines, begun = sse.WholeLines(), time.monotonic()
    for _ in range(2000):
        assert lines.feed(b"x" * 2**14) == b""
    assert lines.held == 2000 * 2**14
    assert len(lines.feed(b"\nrest")) == 2000 * 2**14 + 1
    assert lines.held == 4
    assert time.monotonic() - begun < 1


@given(PAYLOADS, st.lists(st.integers(0, 10_000), max_size=20))
def test_events_cut_anywhere_come_out_the_same(payloads: list[dict[str, Any]], cuts: list[int]) -> None:
    stream = b"".join(map(sse.event, payloads)) + sse.DONE
    assert read(pieces(stream, cuts)) == payloads


@given(st.lists(st.integers(0, 200), max_size=20))
def test_comments_other_fields_and_crlf_are_understood(cuts: list[int]) -> None:
    stream = b': ping\r\n\r\nevent: x\r\nid: 1\r\ndata:{"a":1}\r\n\r\ndata: {"b": 2}\n\ndata: [DONE]\r\n\r\n'
    assert read(pieces(stream, cuts)) == [{"a": 1}, {"b": 2}]


def test_nothing_after_done_is_read() -> None:
    assert read([sse.DONE, b"data: {not json}\n\n"]) == []


def test_an_error_is_the_last_event() -> None:
    assert read([sse.event({"a": 1}), sse.event({"error": {}})]) == [{"a": 1}, {"error": {}}]
    assert read([sse.event({"error": {}}), sse.event({"a": 1}), sse.DONE]) == [{"error": {}}]


def test_an_end_without_done_is_an_error() -> None:
    with pytest.raises(ProcessError, match="not whole"):
        read([sse.event({"a": 1})])
