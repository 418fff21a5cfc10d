"""Server-sent events, as far as OpenAI streams use them: `data: <json>` lines and a final `data: [DONE]`.

Source: WHATWG HTML standard, section 9.2 (event streams).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import msgspec

from tandem.errors import ProcessError

DONE: Final = b"data: [DONE]\n\n"
HEADERS: Final = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}


def event(payload: Any) -> bytes:
    """One event carrying `payload` as JSON."""
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"


class WholeLines:
    """Cuts a byte stream into whole lines, wherever the network cut it; what is held is not searched again."""

    def __init__(self) -> None:
        self._rest = bytearray()

    @property
    def held(self) -> int:
        """Bytes of a line whose end has not come."""
        return len(self._rest)

    def feed(self, piece: bytes) -> bytes:
        """The lines that `piece` completes, with their ends."""
        cut = piece.rfind(b"\n") + 1
        if cut == len(piece) and not self._rest:
            return piece
        if not cut:
            self._rest += piece
            return b""
        lines = bytes(self._rest) + piece[:cut]
        self._rest = bytearray(piece[cut:])
        return lines


class EventParser:
    """Cuts a byte stream into the data of its events, wherever the network cut it."""

    def __init__(self) -> None:
        self._lines = WholeLines()

    @property
    def held(self) -> int:
        """Bytes of a line whose end has not come."""
        return self._lines.held

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The data of every event that `piece` completes."""
        for line in self._lines.feed(piece).split(b"\n"):
            if line.startswith(b"data:"):
                yield line[5:].strip()


async def events(pieces: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """The JSON events of an OpenAI stream, up to `[DONE]` or to an error, which is the last one.

    Raises:
        ProcessError: An event is no JSON, or the stream ended with neither, so the answer is not whole.
    """
    parser = EventParser()
    async for piece in pieces:
        for data in parser.feed(piece):
            if data == b"[DONE]":
                # Read to the end, so that the service does not take us for a client that left early.
                async for _ in pieces:
                    pass
                return
            try:
                payload = msgspec.json.decode(data, type=dict[str, Any])
            except msgspec.DecodeError:
                raise ProcessError(f"the stream holds an event that is no JSON object: {data[:80]!r}") from None
            yield payload
            if "error" in payload:
                return
    raise ProcessError("the stream ended before [DONE], so the answer is not whole; look at the service's log")
