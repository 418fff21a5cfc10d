"""Leases: good once, for a limited time, and always given back."""

from __future__ import annotations

import pytest

from tandem.errors import TransferError
from tandem.kv.lease import LeaseBook


class Fixture:
    def __init__(self) -> None:
        self.now = 100.0
        self.back: list[int] = []
        self.book = LeaseBook(30, self.back.extend, lambda: self.now)


def test_a_ticket_is_good_once() -> None:
    f = Fixture()
    lease = f.book.open([1, 2], [7, 8, 9], seed=5)
    assert (lease.tokens, lease.token_ids, lease.seed) == (2, [7, 8, 9], 5)
    f.book.claim(lease.ticket)
    with pytest.raises(TransferError, match="being pulled"):
        f.book.claim(lease.ticket)
    assert f.book.release(lease.ticket)
    assert f.back == [1, 2]
    with pytest.raises(TransferError, match="used up, expired or unknown"):
        f.book.claim(lease.ticket)
    assert not f.book.release(lease.ticket)
    assert f.back == [1, 2]


def test_a_broken_pull_may_be_tried_again() -> None:
    f = Fixture()
    lease = f.book.open([1], [7, 8], seed=0)
    f.book.claim(lease.ticket)
    f.now += 100
    f.book.expire()
    assert len(f.book) == 1, "a lease does not expire under its reader"
    f.book.unclaim(lease.ticket)
    f.book.expire()
    assert f.book.claim(lease.ticket) is lease


def test_unused_tickets_expire() -> None:
    f = Fixture()
    old = f.book.open([1], [7, 8], seed=0)
    f.now += 20
    young = f.book.open([2], [7, 8], seed=0)
    f.now += 10
    f.book.expire()
    assert (f.back, f.book.expired, len(f.book)) == ([1], 1, 1)
    with pytest.raises(TransferError):
        f.book.claim(old.ticket)
    assert f.book.claim(young.ticket) is young


def test_tickets_cannot_be_guessed() -> None:
    f = Fixture()
    tickets = {f.book.open([], [1, 2], seed=0).ticket for _ in range(100)}
    assert len(tickets) == 100
    assert all(len(ticket) == 32 for ticket in tickets)


def test_awaited_leases_begin_anew() -> None:
    f = Fixture()
    awaited, other = (f.book.open([block], [7, 8], seed=0) for block in (1, 2))
    for _ in range(5):
        f.now += 20
        f.book.renew([awaited.ticket, "gone"])
        f.book.expire()
    assert f.back == [2]
    with pytest.raises(TransferError):
        f.book.claim(other.ticket)
    assert f.book.claim(awaited.ticket) is awaited
