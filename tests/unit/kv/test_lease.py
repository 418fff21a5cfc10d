"""Leases: blocks under a name that come back exactly once, however the lease ends."""

from __future__ import annotations

import math

import pytest

from tandem.kv.lease import Lease, LeaseBook, Ticket


class Desk:
    """A book on a clock of our own."""

    def __init__(self) -> None:
        self.now = 100.0
        self.back: list[int] = []
        self.book: LeaseBook[Lease] = LeaseBook(30, self.back.extend, lambda: self.now)

    def lease(self, *blocks: int, begun: bool = True) -> Lease:
        lease = Lease(list(blocks))
        self.book.add(lease)
        if begun:
            self.book.begin(lease)
        return lease

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.book.expire()


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_lease_is_found_until_it_ends_and_gives_back_once(desk: Desk) -> None:
    lease = desk.lease(1, 2)
    assert desk.book.find(lease.name) is lease
    assert desk.book.end(lease.name) is lease
    assert desk.book.end(lease.name) is None
    assert desk.book.find(lease.name) is None
    assert (desk.back, len(desk.book), desk.book.expired) == ([1, 2], 0, 0)


def test_what_nobody_uses_expires_when_its_time_is_over_and_not_before(desk: Desk) -> None:
    old = desk.lease(1)
    desk.later(20)
    young = desk.lease(2)
    desk.later(9.99)
    assert len(desk.book) == 2
    desk.later(0.01)
    assert (desk.back, desk.book.expired, list(desk.book)) == ([1], 1, [young])
    assert desk.book.end(old.name) is None


def test_what_is_still_computed_does_not_expire(desk: Desk) -> None:
    lease = desk.lease(begun=False)
    desk.later(1e9)
    assert (list(desk.book), lease.expires) == ([lease], math.inf)
    lease.blocks = [7]
    desk.book.begin(lease)
    desk.later(29)
    assert len(desk.book) == 1
    desk.later(1)
    assert desk.back == [7]


def test_renewed_leases_begin_anew_and_the_others_do_not(desk: Desk) -> None:
    awaited, other = desk.lease(1), desk.lease(2)
    for _ in range(5):
        desk.now += 20
        desk.book.renew([awaited.name, "gone"])
        desk.book.expire()
    assert (desk.back, list(desk.book)) == ([2], [awaited])
    assert desk.book.find(other.name) is None
    desk.later(30)
    assert desk.back == [2, 1]


def test_renewing_does_not_begin_what_is_still_computed(desk: Desk) -> None:
    lease = desk.lease(begun=False)
    desk.book.renew([lease.name])
    desk.later(1e9)
    assert len(desk.book) == 1


def test_an_expired_lease_cannot_be_renewed(desk: Desk) -> None:
    lease = desk.lease(1)
    desk.later(30)
    desk.book.renew([lease.name])
    assert len(desk.book) == 0
    assert desk.back == [1]


@pytest.mark.parametrize("ask", ["find", "end", "renew"])
def test_a_lease_whose_time_is_over_is_gone_for_whoever_asks_first(desk: Desk, ask: str) -> None:
    lease = desk.lease(1)
    desk.now += 30
    assert getattr(desk.book, ask)([lease.name] if ask == "renew" else lease.name) is None
    desk.book.expire()
    assert (desk.back, len(desk.book), desk.book.expired) == ([1], 0, 1)


def test_names_cannot_be_guessed() -> None:
    names = {lease.name for lease in [*(Lease() for _ in range(100)), *(Ticket() for _ in range(100))]}
    assert len(names) == 200
    assert all(len(name) == 32 for name in names)
