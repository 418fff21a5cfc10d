"""A worker's whole answer, read."""

from __future__ import annotations

from typing import Annotated

import msgspec

from tandem.gateway.request.internal import without_tickets
from tandem.gateway.request.tally import Tally
from tandem.gateway.wire.exchange import Exchange, WorkerError
from tandem.protocol.json_body import UNREADABLE


class WholeAnswer(msgspec.Struct, frozen=True):
    """What every answer has; a status of 200 alone makes none."""

    choices: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1)]


async def told_answer(exchange: Exchange, tally: Tally) -> bytes:
    """The answer as its client gets it.

    Raises:
        WorkerError: It broke off, or is no answer.
    """
    raw = await exchange.whole()
    try:
        msgspec.json.decode(raw, type=WholeAnswer)
        return tally.whole(without_tickets(raw), alone=exchange.prefilled is None)
    except UNREADABLE:
        raise WorkerError(exchange.worker, "answered with no choices of an answer", cause="bad_answer") from None
