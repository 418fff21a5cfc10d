"""What a worker's page says of its room, and how the ledger is made right by it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.gateway.processes.board import Board
from tandem.gateway.workers.capacity import FULL, SCALES, UNREAD, Capacity, Occupancy
from tandem.gateway.workers.load import Load

TANDEM = b"""# HELP tandem_kv_blocks_total KV blocks of this instance
# TYPE tandem_kv_blocks_total gauge
tandem_kv_blocks_total 64.0
# TYPE tandem_kv_blocks_free gauge
tandem_kv_blocks_free 48.0
tandem_kv_block_tokens 16.0
tandem_kv_blocks_known 3.0
"""
VLLM = b"""# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="a \\"} 7"} 0.25
vllm:kv_cache_usage_perc_of_tomorrow{engine="0"} 0.9
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",engine="0",kv_cache_size_tokens="None",num_gpu_blocks="100"} 1.0
"""


def test_a_page_of_ours() -> None:
    assert Occupancy.read(TANDEM) == Occupancy(total=1024, used=256)


def test_a_page_of_vllm() -> None:
    assert Occupancy.read(VLLM) == Occupancy(total=1600, used=400)
    assert Occupancy.read(VLLM.replace(b'"None"', b'"800"')) == Occupancy(total=800, used=200)
    assert Occupancy.read(VLLM.partition(b"\n")[2].rstrip()) == Occupancy(total=1600, used=400)


def test_several_engines_of_one_vllm_are_one_room() -> None:
    second = VLLM.replace(b'engine="0"', b'engine="1"').replace(b" 0.25", b" 0.75")
    lines = sorted(VLLM.splitlines() + second.splitlines())
    assert Occupancy.read(b"\n".join(lines)) == Occupancy(total=3200, used=400 + 1200)


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"{}",
        b"<html>",
        VLLM.replace(b"cache_config_info", b"other"),
        VLLM.replace(b"usage_perc", b"other"),
        VLLM.replace(b"num_gpu_blocks", b"blocks"),
        VLLM.replace(b'"100"', b'"None"'),
        VLLM.replace(b"0.25", b"NaN"),
        VLLM.replace(b"0.25", b"-1"),
        VLLM.replace(b" 0.25", b""),
        TANDEM.replace(b"64.0", b"many"),
        TANDEM.replace(b"64.0", b"1e999"),
        TANDEM.replace(b"64.0", b"0"),
        TANDEM.replace(b"kv_block_tokens", b"other"),
    ],
)
def test_a_page_that_does_not_say(page: bytes) -> None:
    assert Occupancy.read(page) is None


@given(st.binary(max_size=200), st.integers(0, len(VLLM)))
def test_no_page_breaks_the_reader(noise: bytes, at: int) -> None:
    Occupancy.read(VLLM[:at] + noise + VLLM[at:])


def test_a_page_of_a_few_kilobytes_is_read_at_once() -> None:
    """Or a worker that writes nonsense would hold up everybody's requests."""
    name, begun = b"vllm:cache_config_info", time.monotonic()
    for nonsense in (b"a" * 2**20, b'a="' * 2**18, b'a="\\"' * 2**18, b"} " + b"1" * 2**20):
        assert Occupancy.read(VLLM + b"%s{%s} 1\n" % (name, nonsense)) == Occupancy(total=1600, used=400)
    labels = b"\n".join([name + b"{" + b"a" * 4000 + b"} 1"] * 200)
    assert Occupancy.read(labels) is None
    assert time.monotonic() - begun < 1


def load_of(tokens: int, requests: int = 1) -> Load:
    load = Load(Board(), "http://d")
    for _ in range(requests):
        load.begin(tokens // requests)
    return load


def known(total: float = 1000, used: float = 0, booked: float = 0, begun: float = 0) -> Capacity:
    capacity = Capacity()
    capacity.learn(Occupancy(total=total, used=used), booked, begun)
    return capacity


def test_room_is_what_is_not_booked() -> None:
    capacity = known()
    assert capacity.has_room(load_of(0), 900)
    assert capacity.has_room(load_of(600), 300)
    assert not capacity.has_room(load_of(601), 300)
    assert capacity.left(950) == FULL * 1000 - 950


def test_what_is_too_large_for_all_of_it_has_no_room_and_never_will() -> None:
    assert not known().has_room(load_of(0), 901)
    assert not known().could_hold(901)
    assert known().could_hold(900)


def test_who_was_not_asked_yet_gets_a_few_and_who_does_not_tell_any_number() -> None:
    capacity = Capacity()
    assert capacity.has_room(load_of(0, UNREAD - 1), 10**9)
    assert not capacity.has_room(load_of(0, UNREAD), 1)
    capacity.unknown()
    assert capacity.has_room(load_of(0, UNREAD), 10**9)
    capacity.forget()
    assert not capacity.has_room(load_of(0, UNREAD), 1)


def test_what_others_use_is_no_room() -> None:
    capacity = known(used=500)
    assert capacity.others == 500
    assert capacity.has_room(load_of(0), 400)
    assert not capacity.has_room(load_of(0), 401)
    capacity.learn(Occupancy(total=1000, used=0), 0, 0)
    assert capacity.has_room(load_of(0), 900)


def test_a_request_that_will_fit_is_not_kept_out_by_the_scale_for_ever() -> None:
    capacity = Capacity()
    for _ in range(50):
        capacity.learn(Occupancy(total=1000, used=800), 200, 200)
    assert capacity.scale == pytest.approx(SCALES[1], rel=0.01)
    capacity.learn(Occupancy(total=1000, used=0), 0, 0)
    assert capacity.has_room(load_of(0), 900)
    assert not capacity.has_room(load_of(100), 400)


def test_tokens_that_are_still_to_come_say_nothing_about_the_estimate() -> None:
    """Of 800 booked, 200 have begun: 300 used may be those and a part of the others."""
    capacity = known(used=300, booked=800, begun=200)
    assert (capacity.scale, capacity.others) == (1.0, 0.0)


def test_a_worker_that_says_it_has_no_room_has_some_when_something_ends_or_at_the_next_look() -> None:
    capacity = known()
    capacity.refused(700, 50)
    assert not capacity.has_room(load_of(700), 50)
    assert capacity.has_room(load_of(699), 50)
    capacity.refused(700, 50)
    assert capacity.has_room(load_of(699), 50)
    capacity.learn(Occupancy(total=1000, used=700), 700, 700)
    assert capacity.has_room(load_of(700), 50)


def test_nearly_full() -> None:
    capacity = known()
    assert not capacity.is_nearly_full(load_of(700))
    assert capacity.is_nearly_full(load_of(730))
    assert not Capacity().is_nearly_full(load_of(10**9))


@given(
    true=st.floats(0.5, 2.0),
    others=st.floats(0, 300),
    booked=st.lists(st.integers(1, 400), min_size=40, max_size=60),
)
def test_the_ledger_comes_to_say_what_the_worker_says(true: float, others: float, booked: list[int]) -> None:
    """However wrong the estimate is and whoever else sends: at each look the two agree, or ours is more."""
    capacity = Capacity()
    for tokens in booked:
        used = true * tokens + others
        capacity.learn(Occupancy(total=2000, used=used), tokens, tokens)
        assert SCALES[0] <= capacity.scale <= SCALES[1]
        assert capacity.scale * tokens + capacity.others >= used - 1e-6
    if not others:
        assert capacity.scale == pytest.approx(true, rel=0.01)
