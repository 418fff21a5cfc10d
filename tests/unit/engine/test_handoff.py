"""What travels with the blocks: it comes back as it was, and nothing else is taken for it."""

from __future__ import annotations

import msgspec
import pytest

from tandem.engine.handoff import HandOff
from tandem.engine.sampled import Sampled
from tandem.errors import TransferError
from tandem.protocol.logprobs import TokenLogprobs

LOGPROBS = TokenLogprobs(token=7, logprob=-0.25, top=((7, -0.25), (3, -2.5)))
STATE = HandOff(prompt=9, seed=2**63 - 1, first=[Sampled(7, LOGPROBS), Sampled(0)])


def test_a_state_arrives_as_it_was() -> None:
    assert HandOff.decode(STATE.encode()) == STATE


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": 0},
        {"prompt": "9"},
        {"seed": -1},
        {"seed": 2**63},
        {"first": [{"token": -1}]},
        {"first": [{"token": 1.5}]},
        {"first": None},
        {"first": [{"token": 1, "logprobs": {"token": 1}}]},
    ],
    ids=str,
)
def test_a_state_that_makes_no_sense_is_refused(change: dict) -> None:
    with pytest.raises(TransferError, match="cannot be read"):
        HandOff.decode(msgspec.msgpack.encode(msgspec.to_builtins(STATE) | change))


@pytest.mark.parametrize("state", [b"", b"\xc1", STATE.encode()[:-1], STATE.encode() + b"\0", b"\x90"])
def test_bytes_that_are_no_state_are_refused(state: bytes) -> None:
    with pytest.raises(TransferError, match="cannot be read"):
        HandOff.decode(state)


@pytest.mark.parametrize("field", ["prompt", "seed", "first"])
def test_a_state_lacks_nothing(field: str) -> None:
    fields = msgspec.to_builtins(STATE)
    del fields[field]
    with pytest.raises(TransferError, match=field):
        HandOff.decode(msgspec.msgpack.encode(fields))
