"""What a client has of a streamed answer, so that another worker can go on with it.

Every stream is asked for its token ids. What the client did not ask for is cut out of the bytes that it gets, with one
regular expression for each piece that the network brings; no JSON is decoded for that. The pieces are kept as they
came, and decoded when somebody has to know: when the answer has to go on elsewhere, or there are too many of them.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from tandem.gateway.request.internal import OF_ANSWERS
from tandem.gateway.request.progress import Chunk, Progress
from tandem.protocol.json_body import UNREADABLE
from tandem.protocol.sse import EventParser

IDS: Final = re.compile(rb',\s*"(?:token_ids|prompt_token_ids)"\s*:\s*(?:\[[0-9,\s]*\]|null)')
"""The fields that were asked for on top. No text holds these bytes: a quote in one has a backslash before it."""
REASONING: Final = re.compile(rb'[{,]\s*"reasoning(?:_content)?"\s*:\s*"[^"]')
"""What a parser has set apart from a chat's text."""
FINISH: Final = re.compile(rb'"finish_reason"\s*:\s*"')
"""Of a choice that is whole."""
KEPT_BYTES: Final = 2**16
"""Undecoded pieces up to so many bytes are kept for a stream."""


class Journal:
    """Of one stream of one choice.

    Args:
        wants_ids: Whether the client asked for token ids itself.
    """

    def __init__(self, *, wants_ids: bool) -> None:
        self._wants_ids = wants_ids
        self._progress = Progress()
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._parser = EventParser()
        self._error: Exception | None = None

    def pass_on(self, lines: bytes) -> bytes:
        """Note whole lines of a stream, and return them as the client gets them."""
        self._kept.append(lines)
        self._kept_bytes += len(lines)
        if self._kept_bytes > KEPT_BYTES:
            self._decode()
        return lines if self._wants_ids else IDS.sub(b"", lines)

    @property
    def size(self) -> int:
        """Bytes that are kept, eight for each token's id."""
        return self._kept_bytes + 8 * len(self._progress.tokens)

    @property
    def events(self) -> int:
        """How many have come, `[DONE]` apart; it is counted only here."""
        return self._progress.events + (b"\n" + b"".join(self._kept)).count(b"\ndata: {")

    @property
    def is_finished(self) -> bool:
        """Whether the client knows why the answer ended."""
        return self._progress.finish_reason is not None or any(map(is_finish, reversed(self._kept)))

    @property
    def tells_reasoning(self) -> bool:
        """Whether an engine has set reasoning apart from the text."""
        return self._progress.parsed is not None or REASONING.search(b"".join(self._kept)) is not None

    @property
    def progress(self) -> Progress:
        """How far the answer has come.

        Raises:
            Exception: One of `UNREADABLE`: what came is no stream of OpenAI's API.
        """
        self._decode()
        if self._error is not None:
            raise self._error
        return self._progress

    def seen(self, event: dict[str, Any]) -> dict[str, Any]:
        """An event of a further worker as the client gets it; the prompt's ids it has already, if it wanted them."""
        hidden = {*OF_ANSWERS, "prompt_token_ids"} | (set() if self._wants_ids else {"token_ids"})
        kept = {name: value for name, value in event.items() if name not in hidden}
        kept["choices"] = [{k: v for k, v in choice.items() if k not in hidden} for choice in event["choices"]]
        return kept

    def _decode(self) -> None:
        """What cannot be read is no reason to end a stream that goes on by itself."""
        try:
            for data in self._parser.feed(b"".join(self._kept)):
                if data != b"[DONE]":
                    self._progress.add(msgspec.json.decode(data, type=Chunk))
        except UNREADABLE as error:
            self._error = error
        self._kept.clear()
        self._kept_bytes = 0


def is_finish(lines: bytes) -> bool:
    """Whether these lines of a stream say why an answer ended."""
    return FINISH.search(lines) is not None
