"""What is between the gateway and its instances: never a client's to set, never a client's to see."""

from __future__ import annotations

import json

import msgspec
import pytest

from tandem.gateway.request.body import ClientBody
from tandem.gateway.request.internal import INTERNAL, lines_without_tickets, without_addresses, without_tickets

URLS = ("http://10.0.0.9:9101", "https://decode:8443", "http://node-7.cluster.local:80", "http://[fd00::7]:9101")


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


@pytest.mark.parametrize(
    "said",
    [
        "http://10.0.0.9:9101/v1/completions",
        "10.0.0.9:9101",
        "10.0.0.9",
        "https://decode:8443",
        "DECODE:5600",
        "node-7.cluster.local:5600",
        "[fd00::7]:9101",
        "http://[fd00::8]:1",
        "172.17.0.4:5600",
    ],
)
def test_addresses_are_hidden(said: str) -> None:
    words = without_addresses(f'cannot pull from {said}, "{said}": refused'.encode(), URLS).decode()
    assert said not in words
    assert words.count("(address)") == 2
    assert words.endswith(": refused")


@pytest.mark.parametrize("said", ["decode cannot", "decoded: 1", "at 12:30:05", "1.5 of 3.25", "version 1.2.3", "a:80"])
def test_other_words_stay(said: str) -> None:
    assert without_addresses(said.encode(), URLS) == said.encode()
