"""Tickets as instances give them, and what is read of them."""

from __future__ import annotations

import json

import msgspec
import pytest

from tandem.gateway.delivery.ticket import Ticket
from tandem.gateway.wire.exchange import WorkerError
from tandem.gateway.wire.worker import Worker

HOLDER = Worker(name="prefill-0", url="http://p", role="prefill")


@pytest.mark.parametrize(
    "raw", [b"[1]", b'"x"', b"5", b"false", b"{", b'{"remote_request_id":"\xff"}', b'{"\xff":1}', b'{"\\ud800":1}']
)
def test_a_ticket_that_cannot_be_read_is_a_bad_answer(raw: bytes) -> None:
    with pytest.raises(WorkerError, match="prefill-0 gave a ticket that is no JSON object") as error:
        Ticket.read(msgspec.Raw(raw), HOLDER)
    assert error.value.cause == "bad_answer"


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b'{"remote_request_id":"a","x":[1]}', "a"),
        (b'{"remote_request_id":5}', None),
        (b"{}", None),
    ],
)
def test_an_id_is_text_or_not_there(raw: bytes, found: str | None) -> None:
    ticket = Ticket.read(msgspec.Raw(raw), HOLDER)
    assert (bytes(ticket.raw), ticket.id, ticket.kept.id) == (raw, found, found)


def test_one_that_is_kept_says_so() -> None:
    ticket = Ticket.read(msgspec.Raw(b'{"remote_request_id":"a","release_on_abort":true}'), HOLDER)
    assert json.loads(bytes(ticket.kept.raw)) == {"remote_request_id": "a", "release_on_abort": False}
