"""What is between the gateway and its instances: never a client's to set, never a client's to see."""

from __future__ import annotations

import json

import msgspec
import pytest

from tandem.gateway.request.body import ClientBody
from tandem.gateway.request.internal import INTERNAL, lines_without_tickets, without_tickets


def escaped(name: str) -> str:
    return "".join(f"\\u{ord(character):04x}" for character in name)


@pytest.mark.parametrize("name", sorted(INTERNAL))
@pytest.mark.parametrize("inside", ["", "vllm_xargs"])
def test_it_is_dropped_however_it_is_spelled(name: str, inside: str) -> None:
    fields = f'"{name}": {{"a": 1}}, "{escaped(name)}": "b", "{name}": null, "kept": 1.50'
    body = f'{{"{inside}": {{{fields}}}}}' if inside else f"{{{fields}}}"
    sent = json.loads(ClientBody.decode(body.encode()).decode_leg(None, None))
    assert sent == ({inside: {"kept": 1.5}} if inside else {"kept": 1.5})


@pytest.mark.parametrize("value", ["null", "1", "[]", '"kv_transfer_params"'])
def test_what_is_no_object_is_left_to_the_instance(value: str) -> None:
    body = b'{"vllm_xargs": %s}' % value.encode()
    assert bytes(ClientBody.decode(body).fields["vllm_xargs"]) == value.encode()


def test_tickets_are_taken_out_of_answers() -> None:
    whole = b'{"id":"x","kv_transfer_params":null,"ec_transfer_params":{"a":1},"n":1.50}'
    assert without_tickets(whole) == b'{"id":"x","n":1.50}'
    assert without_tickets(b'{"id": "x"}') == b'{"id": "x"}'
    with pytest.raises(msgspec.DecodeError):
        without_tickets(b"oops")
    lines = b'data: {"id":"x","ec_transfer_params":{"a":1}}\n\ndata: {"id": "y"}\n\ndata: [DONE]\n\n'
    assert lines_without_tickets(lines) == b'data: {"id":"x"}\n\ndata: {"id": "y"}\n\ndata: [DONE]\n\n'


def test_so_are_tickets_inside() -> None:
    whole = b'{"n":1.50,"choices":[{"text":"x","kv_transfer_params":{"a":1},"delta":{"ec_transfer_params":1}}]}'
    seen = b'{"n":1.5,"choices":[{"text":"x","delta":{}}]}'
    assert without_tickets(whole) == seen
    assert lines_without_tickets(b"data: " + whole + b"\r\n\r\n") == b"data: " + seen + b"\n\r\n"
    assert lines_without_tickets(b'data: [{"kv_transfer_params":1}]\n') == b"data: [{}]\n"
    innocent = b'data: {"text":"\\"kv_transfer_params\\""}\n'
    assert lines_without_tickets(innocent) == innocent
    with pytest.raises(msgspec.DecodeError):
        lines_without_tickets(b'data: {"kv_transfer_params":1,,}\n')
