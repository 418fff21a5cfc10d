"""Whose turn it is."""

from __future__ import annotations

import pytest

from tandem.errors import RequestError
from tandem.gateway.pool import Pool


def pool(prefill: int, decode: int, *, down: tuple[str, ...] = ()) -> Pool:
    made = Pool.of([f"http://p{i}" for i in range(prefill)], [f"http://d{i}" for i in range(decode)])
    for worker in made.workers:
        made.mark(worker, up=worker.name not in down)
    return made


def test_names_and_roles() -> None:
    workers = pool(2, 1).workers
    assert [(w.name, w.role, w.url) for w in workers] == [
        ("prefill-0", "prefill", "http://p0"),
        ("prefill-1", "prefill", "http://p1"),
        ("decode-0", "decode", "http://d0"),
    ]


def test_without_prefill_urls_the_others_do_both() -> None:
    lone = pool(0, 2)
    assert not lone.apart
    assert [(w.name, w.role) for w in lone.workers] == [("decode-0", "both"), ("decode-1", "both")]


def test_workers_take_turns() -> None:
    shared = pool(1, 3)
    assert [shared.pick("decode").name for _ in range(4)] == ["decode-0", "decode-1", "decode-2", "decode-0"]
    assert shared.pick("prefill").name == "prefill-0"


def test_who_is_down_is_skipped_and_comes_back() -> None:
    shared = pool(1, 2, down=("decode-0",))
    assert {shared.pick("decode").name for _ in range(3)} == {"decode-1"}
    shared.mark(shared.workers[1], up=True)
    assert {shared.pick("decode").name for _ in range(2)} == {"decode-0", "decode-1"}


def test_every_missing_role_is_named() -> None:
    shared = pool(2, 1, down=("prefill-0", "prefill-1", "decode-0"))
    assert shared.missing == ("prefill", "decode")
    with pytest.raises(RequestError, match=r"prefill \(prefill-0, prefill-1\); decode \(decode-0\)") as caught:
        shared.pick("decode")
    assert caught.value.status == 503


def test_a_worker_is_down_until_it_answered() -> None:
    assert Pool.of([], ["http://d0"]).missing == ("both",)
