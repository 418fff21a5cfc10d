"""A place in a rank table as a served name, there and back."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.protocol.identity import Role, Seat
from tandem.protocol.seat_name import hide_seat_names, read_seat_name, seat_name, without_seat_names

SEATS = st.builds(
    Seat,
    host=st.sampled_from(["10.0.0.18", "fe80::1%eth0", "node-7.example"]),
    devices=st.lists(st.integers(0, 99), min_size=1).map(tuple),
    table=st.text("0123456789abcdef", min_size=16, max_size=16),
)


@given(st.sampled_from(get_args(Role)), SEATS)
def test_there_and_back(role: Role, seat: Seat) -> None:
    assert read_seat_name(seat_name(role, seat)) == (role, seat)


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "tandem-seat/prefill",
        "tandem-seat/gateway/4@h/abc",
        "tandem-seat/prefill/@h/abc",
        "tandem-seat/prefill/4,@h/abc",
        "tandem-seat/prefill/4@h/xyz",
        "tandem-seat/prefill/٤@h/abc",
        "x/tandem-seat/prefill/4@h/abc",
    ],
)
def test_other_names_are_no_seats(name: str) -> None:
    assert read_seat_name(name) is None


def test_clients_do_not_see_them() -> None:
    card = {"object": "model", "max_model_len": 9}
    seat = seat_name("decode", Seat(host="h", devices=(1,), table="ab"))
    models = {"object": "list", "data": [card | {"id": "m"}, card | {"id": seat}, card | {"id": "n"}]}
    seen = json.loads(without_seat_names(json.dumps(models).encode()))
    assert seen == models | {"data": [card | {"id": "m"}, card | {"id": "n"}]}
    assert without_seat_names(b"no JSON") == b"no JSON"


@pytest.mark.parametrize("odd", [b"tandem-seat/ no JSON", b'{"x": "tandem-seat/"}', b'{"data": [{"tandem-seat/": 1}]}'])
def test_an_odd_list_is_no_failure(odd: bytes) -> None:
    assert b"data" not in odd or json.loads(without_seat_names(odd)) == json.loads(odd)
    without_seat_names(odd)


def test_an_engine_that_lists_its_names_does_not_tell_seats() -> None:
    seat = seat_name("prefill", Seat(host="10.0.0.1", devices=(4, 5), table="ab12"))
    said = f"The model `x` does not exist. Valid aliases: m, {seat}."
    assert hide_seat_names(said.encode()) == b"The model `x` does not exist. Valid aliases: m."
    assert hide_seat_names(f"[{seat}, m]".encode()) == b"[, m]"
