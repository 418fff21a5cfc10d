"""A worker's stream, read: whole lines as they come, or events, up to its end or to what went wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import msgspec

from tandem.gateway.delivery.worker_client import WorkerClient
from tandem.gateway.request.progress import Chunk, Event
from tandem.gateway.wire.exchange import Exchange, WorkerError
from tandem.protocol.sse import EventParser

ERROR: Final = b'data: {"error"'
"""How an error event begins; no text can hold these bytes, because quotes in it are escaped."""
TAIL: Final = 32
"""Bytes of a stream's end that are looked at for its last event, `[DONE]`."""


async def told_lines(exchange: Exchange, client: WorkerClient) -> AsyncIterator[bytes]:
    """Whole lines, up to an error event.

    Raises:
        WorkerError: The stream broke off, or its worker says that it failed.
        RequestError: It was ended because somebody wanted it so.
    """
    rest = b""
    async for piece in exchange.pieces():
        cut = piece.rfind(b"\n") + 1
        lines, rest = (rest + piece[:cut], piece[cut:]) if cut else (b"", rest + piece)
        good, error, said = lines.partition(ERROR)
        if good:
            yield good
        if error:
            event = (error + said).splitlines()[0].removeprefix(b"data: ")
            raise client.told(exchange.worker, event)


async def told_events(exchange: Exchange, client: WorkerClient) -> AsyncIterator[Event]:
    """The events of a stream, up to its `[DONE]`; raises like `told_lines`."""
    parser, done = EventParser(), False
    async for lines in told_lines(exchange, client):
        for data in parser.feed(lines):
            done = data == b"[DONE]"
            if not done:
                yield _decoded(exchange, data)
    if not done:
        raise exchange.lost("ended its stream before [DONE]", "cut")


def _decoded(exchange: Exchange, data: bytes) -> Event:
    try:
        event = msgspec.json.decode(data, type=Event)
        msgspec.convert(event, Chunk)
    except msgspec.DecodeError:
        how = "streamed something other than OpenAI's JSON"
        raise WorkerError(exchange.worker, how, cause="bad_answer") from None
    return {"choices": []} | event


def is_done(tail: bytes) -> bool:
    """Whether a stream that ends with these bytes is whole."""
    return tail.rstrip().rpartition(b"\n")[2].removeprefix(b"data:").strip() == b"[DONE]"
