"""The audit: it finds nothing where all is well, and every kind of damage where it is not."""

from __future__ import annotations

import pytest

from tandem.engine.audit import Audit, count_blocks
from tandem.kv.blocks import BlockPool


class House:
    """A pool with one owner of each kind, one shared known block, and a pull that holds blocks of the lease."""

    def __init__(self) -> None:
        self.pool = BlockPool(10, 4)
        self.first, self.second = self.pool.allocate(3), self.pool.allocate(1)
        self.pool.publish(self.first[0], b"known")
        self.pool.share(self.first[:1])
        self.second.insert(0, self.first[0])
        self.lease, self.reservation = self.pool.allocate(2), self.pool.allocate(1)
        self.pull = list(self.lease)
        self.pool.share(self.pull)

    def count(self) -> Audit:
        return count_blocks(
            self.pool,
            sequences=[self.first, self.second],
            leases=[self.lease],
            reservations=[self.reservation],
            pulls=[self.pull],
        )


def wrong(audit: Audit) -> tuple[int, int, int]:
    return audit.leaked, audit.torn, audit.doubly_owned


def test_a_house_in_order_is_counted_and_nothing_is_found() -> None:
    assert House().count() == Audit(
        blocks=10,
        free=3,
        known=1,
        sequences=2,
        leases=1,
        reservations=1,
        pulls=1,
        leaked=0,
        torn=0,
        doubly_owned=0,
    )


def test_blocks_nobody_remembers_are_leaked() -> None:
    house = House()
    house.first.pop()
    assert wrong(house.count()) == (1, 0, 0)
    house.pool.allocate(2)
    assert wrong(house.count()) == (3, 0, 0)


@pytest.mark.parametrize("owner", ["first", "lease", "reservation", "pull"])
def test_blocks_given_back_under_their_owner_are_torn(owner: str) -> None:
    house = House()
    house.pool.release(getattr(house, owner)[-1:])
    assert wrong(house.count()) == (0, 1, 0)


@pytest.mark.parametrize(("one", "other"), [("first", "second"), ("first", "lease"), ("reservation", "second")])
def test_a_block_that_two_may_write_to_is_doubly_owned(one: str, other: str) -> None:
    house = House()
    block = getattr(house, one)[-1]
    getattr(house, other).append(block)
    assert wrong(house.count()) == (0, 1, 1)
    house.pool.share([block])
    assert wrong(house.count()) == (0, 0, 1)


def test_a_block_twice_in_one_table_is_doubly_owned() -> None:
    house = House()
    house.first.append(house.first[-1])
    house.pool.share(house.first[-1:])
    assert wrong(house.count()) == (0, 0, 1)


def test_a_known_block_may_have_several_owners_and_a_block_that_travels_too() -> None:
    house = House()
    house.pool.share(house.first[:1])
    house.lease.append(house.first[0])
    house.pool.share(house.pull)
    house.pull *= 2
    assert wrong(house.count()) == (0, 0, 0)
