"""Reading by NIXL between two processes: skipped where the package is not installed."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest
from hand_off_rig import LARGE, MORE_TICKETS, UNTOUCHED, assert_arrived, empty, held_elsewhere, pull, request, until

from tandem.errors import TransferError
from tandem.kv import nixl
from tandem.kv.messages import Granted
from tandem.kv.nixl import NixlReceiver

if not nixl.installed():
    pytest.skip("the nixl package is not installed", allow_module_level=True)

COUNT = 128


@pytest.mark.parametrize(("ranks", "our_ranks"), [(1, 1), (2, 4), (8, 2)])
def test_blocks_arrive(ranks: int, our_ranks: int) -> None:
    async def scenario() -> None:
        shards = empty(LARGE, COUNT, our_ranks)
        with held_elsewhere(COUNT, 1, ranks, "nixl", every=0.005) as holder:
            asked = request(engine_id=holder.peer.engine_id)
            await pull(holder.peer, asked, shards, range(COUNT), 10, ["nixl"])
            assert_arrived(shards, range(COUNT), range(COUNT), COUNT)

    asyncio.run(scenario())


@pytest.mark.parametrize("act", [signal.SIGKILL, signal.SIGSTOP])
def test_a_holder_that_dies_or_freezes_is_noticed_and_writes_nothing_later(act: signal.Signals) -> None:
    """Over UCX's TCP, where a read needs the other process: one from a frozen one goes on when it wakes."""

    async def scenario() -> None:
        shards = empty(LARGE, COUNT)
        here = shards.caches[0].blocks
        with held_elsewhere(COUNT, COUNT, 1, "nixl") as holder:
            first, second = (request(ticket, holder.peer.engine_id) for ticket in MORE_TICKETS)
            await pull(holder.peer, first, shards, range(COUNT), 10, ["nixl"])
            here.fill_(UNTOUCHED)
            pulling = asyncio.ensure_future(pull(holder.peer, second, shards, range(COUNT), 1, ["nixl"]))
            await until(lambda: bool((here[0] != UNTOUCHED).any()) or pulling.done())
            os.kill(holder.process.pid, act)
            began = time.monotonic()
            with pytest.raises(TransferError):
                await pulling
            assert time.monotonic() - began < 3
            before = here.clone()
            os.kill(holder.process.pid, signal.SIGCONT)
            await asyncio.sleep(1)
            assert bool((here == before).all())

    asyncio.run(scenario())


@pytest.mark.parametrize("offer", [b"", b"\xc1", b"\x82\xa8metadata\xc4\x01x\xa7regions\x90"])
def test_an_offer_that_is_none_is_not_believed(offer: bytes) -> None:
    with pytest.raises(TransferError):
        asyncio.run(NixlReceiver(empty(LARGE, 1)).open(Granted("nixl", 1, 1, offer), ()))
