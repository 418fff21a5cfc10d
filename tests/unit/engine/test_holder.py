"""The engine as a holder: a pull is told that its ticket has ended, and asking takes nothing from it."""

from __future__ import annotations

import asyncio

import pytest
import torch
from reference.ledger import LedgerModel

from tandem.engine.engine import Engine, EngineOptions
from tandem.engine.holder import EngineHolder
from tandem.engine.progress import Progress
from tandem.engine.request import Request
from tandem.engine.runner import Runner
from tandem.engine.sampling import SamplingParams
from tandem.engine.scheduler import SchedulerLimits
from tandem.engine.tickets import EngineIdentity
from tandem.errors import TransferError
from tandem.kv.blocks import BlockPool
from tandem.kv.cache import CacheLayout, KVCache
from tandem.kv.messages import Keep, Pull, Release
from tandem.kv.prefix import BlockKeys
from tandem.kv.shards import Shards

SIZE, LEASE = 4, 10.0
PROMPT = list(range(10))
LAYOUT = CacheLayout(layers=1, planes=1, kv_heads=1, head_dim=1, dtype="float32", block_size=SIZE)


class Letters:
    """A tokenizer of one letter per token."""

    drops_first_space = False

    def bytes_of(self, token: int) -> bytes:
        return bytes([97 + token])


class Prefill:
    """An instance on a clock of our own that computes one block's worth of tokens in a step."""

    def __init__(self) -> None:
        self.now = 0.0
        options = EngineOptions(
            limits=SchedulerLimits(max_num_seqs=4, max_num_batched_tokens=SIZE),
            root=lambda request: b"root",
            lease_seconds=LEASE,
        )
        identity = EngineIdentity(engine_id="e", digest="d", host="10.0.0.1", port=9)
        pool = BlockPool(20, SIZE)
        self.engine = Engine(Runner(LedgerModel(SIZE)), pool, Letters(), options, identity, lambda: self.now)
        shards = Shards(LAYOUT, [KVCache(LAYOUT, 1, torch.device("cpu"))])
        self.holder = EngineHolder(self.engine, shards, Progress(), lambda: None)
        sampling = SamplingParams(max_tokens=1)
        self.engine.submit(Request(id="r", prompt=PROMPT, sampling=sampling, keep_for_remote=True))

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            plan, _, _ = self.engine.plan()
            self.engine.commit(plan, self.engine.run(plan))

    def pull(self) -> Pull:
        (ticket,) = self.engine.tickets.open_ones
        content = BlockKeys(b"root", SIZE).content(PROMPT, len(PROMPT))
        return Pull(ticket=ticket.name, engine_id="e", digest="d", content=content)


def test_looking_takes_no_blocks_from_a_pull() -> None:
    prefill = Prefill()
    prefill.step()
    outgoing = prefill.holder.open(prefill.pull())
    taken: list[int] = []
    for _ in range(3):
        outgoing.check()
        taken += asyncio.run(outgoing.next())
        outgoing.check()
        prefill.step()
    assert len(taken) == outgoing.count == 3
    outgoing.check()
    assert outgoing.confirm()
    outgoing.close()
    assert prefill.engine.audit().free == 20


@pytest.mark.parametrize("end", ["expired", "released", "used", "aborted"])
def test_a_pull_learns_that_its_ticket_has_ended_though_no_step_is_made(end: str) -> None:
    prefill = Prefill()
    prefill.step(1 if end == "aborted" else 3)
    asked = prefill.pull()
    outgoing, other = prefill.holder.open(asked), prefill.holder.open(asked)
    for _ in range(5):
        prefill.now += LEASE * 0.9
        prefill.holder.keep(Keep("e", [asked.ticket]))
        outgoing.check()
    match end:
        case "expired":
            prefill.now += LEASE
        case "released":
            prefill.holder.release(Release("e", asked.ticket))
        case "used":
            assert other.confirm()
        case _:
            prefill.engine.abort("r")
    with pytest.raises(TransferError, match="aborted, or the KV ticket was released, used or expired"):
        outgoing.check()
    assert not outgoing.confirm()
