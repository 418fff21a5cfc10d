"""A worker's stream, read: whole lines as they come, or events, up to its end or to what went wrong."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Final

import msgspec

from tandem.gateway.delivery.worker_client import WorkerClient
from tandem.gateway.request.internal import lines_without_tickets
from tandem.gateway.request.progress import Chunk, Event
from tandem.gateway.wire.exchange import Exchange, WorkerError
from tandem.protocol.json_body import UNREADABLE
from tandem.protocol.sse import DONE, EventParser, WholeLines

END: Final = re.compile(rb'^data:[ \t]*(?:(\[DONE\])|\{\s*"(?:error"|object"\s*:\s*"error"))', re.MULTILINE)
"""What ends a stream, and how an error begins; no text can hold these bytes, because quotes in it are escaped."""
WORDS: Final = (b"[DONE]", b'"error"')
"""Without one of them, no line is an end."""
LONGEST_LINE: Final = 2**25
"""Bytes of a line: the ids of a prompt of 128k tokens have 1 MiB, each token with 20 alternatives less than 2 KiB."""

LONG_PIECE: Final = 2**12
"""Bytes; as much as a packet or two bring is looked at as one."""


async def told_lines(exchange: Exchange, client: WorkerClient) -> AsyncIterator[bytes]:
    """Whole lines without tickets, up to `[DONE]`, which comes as `DONE`; what follows that is read and is nobody's.

    Raises:
        WorkerError: The stream broke off before that, or its worker says that it failed.
        RequestError: It was ended because somebody wanted it so.
    """
    whole, has_begun, is_whole = WholeLines(), False, False
    try:
        async for piece in exchange.pieces():
            for part in (piece,) if has_begun else first_apart(piece):
                has_begun = True
                if is_whole:
                    continue
                lines = _without_tickets(exchange, whole.feed(part))
                if not lines:
                    check_line(exchange, whole.held)
                elif (end := _end_of(lines)) is None:
                    yield lines
                elif end[1]:
                    yield lines[: end.start()] + DONE
                    is_whole = True
                else:
                    if end.start():
                        yield lines[: end.start()]
                    raise client.told(exchange.worker, lines[end.start() :].splitlines()[0].removeprefix(b"data:"))
    except WorkerError:
        if not is_whole:
            raise
    if not is_whole:
        raise exchange.lost("ended its stream before [DONE]", "cut")


def first_apart(piece: bytes) -> tuple[bytes, ...]:
    """A stream's first bytes; where they are many, the first event by itself: it does not wait for work on the rest."""
    end = piece.find(b"\n\n") + 2
    return (piece[:end], piece[end:]) if len(piece) > LONG_PIECE and 1 < end < len(piece) else (piece,)


def _end_of(lines: bytes) -> re.Match[bytes] | None:
    """What ends the stream in these lines; most have no such word, and are not looked at any closer."""
    first = min((place for word in WORDS if (place := lines.find(word)) >= 0), default=-1)
    return None if first < 0 else END.search(lines, lines.rfind(b"\n", 0, first) + 1)


def _without_tickets(exchange: Exchange, lines: bytes) -> bytes:
    try:
        return lines_without_tickets(lines)
    except UNREADABLE:
        raise _unreadable(exchange) from None


def check_line(exchange: Exchange, held: int) -> None:
    """Give up a worker of whose line so many bytes are held, if these are too many.

    Raises:
        WorkerError: They are.
    """
    if held > LONGEST_LINE:
        how = f"streamed a line of more than {LONGEST_LINE / 2**20:g} MiB"
        raise WorkerError(exchange.worker, how, cause="bad_answer")


async def told_events(exchange: Exchange, client: WorkerClient) -> AsyncIterator[Event]:
    """The events of a stream, up to its `[DONE]`; raises like `told_lines`."""
    parser = EventParser()
    async for lines in told_lines(exchange, client):
        for data in parser.feed(lines):
            if data != b"[DONE]":
                yield _decoded(exchange, data)


def _decoded(exchange: Exchange, data: bytes) -> Event:
    try:
        event = msgspec.json.decode(data, type=Event)
        msgspec.convert(event, Chunk)
    except UNREADABLE:
        raise _unreadable(exchange) from None
    return {"choices": []} | event


def _unreadable(exchange: Exchange) -> WorkerError:
    return WorkerError(exchange.worker, "streamed something other than OpenAI's JSON", cause="bad_answer")
