"""Tickets: blocks are handed out while they are computed, to whom they were promised, and once."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence as Items

import pytest
from reference.ledger import LedgerModel, state_of

from tandem.engine.engine import Engine, EngineOptions
from tandem.engine.handoff import HandOff
from tandem.engine.request import Request
from tandem.engine.runner import Runner
from tandem.engine.sampling import SamplingParams
from tandem.engine.scheduler import SchedulerLimits
from tandem.engine.sequence import Status
from tandem.engine.tickets import EngineIdentity, PullState
from tandem.engine.update import Update
from tandem.errors import RequestError, TransferError
from tandem.kv.blocks import BlockPool
from tandem.kv.messages import Keep, Pull
from tandem.kv.prefix import BlockKeys
from tandem.protocol.kv import KVTransferParams

SIZE, LEASE = 4, 10.0
PROMPT = list(range(10))
IDENTITY = EngineIdentity(engine_id="e", digest="d", host="10.0.0.1", port=9, ranks=2)


class Letters:
    """A tokenizer of one letter per token."""

    drops_first_space = False

    def bytes_of(self, token: int) -> bytes:
        return bytes([97 + token])


class Prefill:
    """A prefill instance on a clock of our own that computes one block's worth of tokens in a step."""

    def __init__(self, blocks: int = 20, budget: int = SIZE, *, sharing: bool = True) -> None:
        self.now = 0.0
        self.model = LedgerModel(SIZE)
        self.told: dict[str, list[Update]] = {}
        self._ids = itertools.count()
        limits = SchedulerLimits(max_num_seqs=4, max_num_batched_tokens=budget)
        options = EngineOptions(limits=limits, root=lambda request: b"root", lease_seconds=LEASE, sharing=sharing)
        pool = BlockPool(blocks, SIZE)
        self.engine = Engine(Runner(self.model), pool, Letters(), options, IDENTITY, lambda: self.now)

    def ask(self, prompt: Items[int] = PROMPT, *, keep: bool = True, count: int = 1, **fields) -> str:
        name = f"r{next(self._ids)}"
        self.told[name] = []
        sampling = SamplingParams(max_tokens=count)
        request = Request(id=name, prompt=list(prompt), sampling=sampling, keep_for_remote=keep, **fields)
        self.engine.submit(request)
        return name

    def step(self) -> int:
        plan, _, updates = self.engine.plan()
        if plan.works:
            updates = [*updates, *self.engine.commit(plan, self.engine.run(plan))]
        for name, update in updates:
            self.told[name].append(update)
        return plan.tokens

    def finish(self, name: str) -> None:
        for _ in range(100):
            if self.told[name] and self.told[name][-1].reason is not None:
                return
            self.step()
        raise AssertionError("the engine does not finish")

    def early(self, name: str) -> KVTransferParams:
        """The ticket as it is told before its blocks are computed."""
        self.step()
        first = self.told[name][0]
        assert (first.tokens, first.reason) == ((), None)
        assert first.ticket is not None
        return first.ticket

    def closed(self, name: str) -> KVTransferParams:
        """The ticket as it is told with the first token."""
        self.finish(name)
        last = self.told[name][-1].ticket
        assert last is not None
        return last

    def pull(
        self, ticket: KVTransferParams, prompt: Items[int] = PROMPT, first: int = 0, name: str | None = None, **changes
    ) -> PullState:
        asked = {
            "ticket": ticket.remote_request_id if name is None else name,
            "engine_id": ticket.remote_engine_id,
            "digest": "d",
            "content": BlockKeys(b"root", SIZE).content(prompt, len(prompt)),
            "first": first,
        }
        return self.engine.open_pull(Pull(**(asked | changes)))

    def holds(self, blocks: Items[int], prompt: Items[int], first: int = 0) -> bool:
        """Whether blocks contain what a model alone computes for a prompt, from its block `first` on."""
        slots = [self.model.slots.get((block, place)) for block in blocks for place in range(SIZE)]
        return slots[: len(prompt) - first * SIZE] == [
            state_of(prompt[: end + 1]) for end in range(first * SIZE, min(len(prompt), (first + len(blocks)) * SIZE))
        ]

    @property
    def held(self) -> int:
        """Blocks that somebody holds, with nothing amiss."""
        audit = self.engine.audit()
        assert (audit.leaked, audit.torn, audit.doubly_owned) == (0, 0, 0)
        return audit.blocks - audit.free


@pytest.fixture
def there() -> Prefill:
    return Prefill()


def test_a_ticket_is_told_before_its_blocks_are_computed_and_again_with_the_first_token(there: Prefill) -> None:
    name = there.ask()
    early, closed = there.early(name), there.closed(name)
    assert early.remote_request_id == closed.remote_request_id
    for ticket in (early, closed):
        assert (ticket.do_remote_prefill, ticket.remote_engine_id, ticket.tp_size) == (True, "e", 2)
        assert (ticket.remote_host, ticket.remote_port, ticket.remote_num_tokens) == ("10.0.0.1", 9, 10)
    assert early.remote_block_ids == [[]]
    assert early.remote_blocks_expiry_time is None
    assert closed.remote_block_ids is not None
    assert there.holds(closed.remote_block_ids[0], PROMPT)
    assert closed.remote_blocks_expiry_time == pytest.approx(time.time() + LEASE, abs=5)
    assert there.told[name][-1].reason == "length"
    assert len(there.told[name]) == 2


def test_only_requests_for_another_instance_get_tickets(there: Prefill) -> None:
    name = there.ask(keep=False)
    while there.step():
        pass
    assert all(update.ticket is None for update in there.told[name])
    assert len(there.engine.tickets) == 0


def test_blocks_are_pulled_while_the_prefill_goes_on(there: Prefill) -> None:
    pull = there.pull(there.early(there.ask()))
    first = there.engine.next_blocks(pull)
    assert first is not None
    assert there.holds(first, PROMPT)
    assert len(first) == 1
    assert there.engine.next_blocks(pull) is None, "nothing new is computed"
    there.step()
    second = there.engine.next_blocks(pull)
    assert second is not None
    assert there.holds([*first, *second], PROMPT)
    assert there.engine.next_blocks(pull) is None
    assert pull.ticket.state is None
    there.step()
    last = there.engine.next_blocks(pull)
    assert last is not None
    assert there.holds([*first, *second, *last], PROMPT)
    assert there.engine.next_blocks(pull) == []
    assert pull.ticket.state is not None
    assert HandOff.decode(pull.ticket.state).prompt == 10
    assert there.engine.confirm_pull(pull)
    there.engine.close_pull(pull)
    assert there.held == 0


def test_a_pull_may_begin_before_anything_is_computed(there: Prefill) -> None:
    """A puller may hear of a ticket from the plan whose step is still under way."""
    there.ask()
    plan, _, ((_, update),) = there.engine.plan()
    assert update.ticket is not None
    pull = there.pull(update.ticket)
    assert there.engine.next_blocks(pull) is None
    there.engine.commit(plan, there.engine.run(plan))
    assert len(there.engine.next_blocks(pull) or ()) == 1


def test_a_pull_names_only_what_its_puller_has_not(there: Prefill) -> None:
    ticket = there.closed(there.ask())
    assert ticket.remote_block_ids is not None
    blocks = ticket.remote_block_ids[0]
    for first in range(4):
        pull = there.pull(ticket, first=first)
        assert there.engine.next_blocks(pull) == blocks[first:]
        assert there.engine.next_blocks(pull) == []
        there.engine.close_pull(pull)


LONG = [*range(8), *range(8)]


def test_what_is_promised_is_never_taken_away() -> None:
    """A prefill that another instance may wait for keeps its blocks, whoever needs some, and can be finished."""
    there = Prefill(blocks=7, budget=8)
    first = there.ask([9] * 6, keep=False, count=8)
    there.step()
    pull = there.pull(there.early(there.ask(LONG, priority=1)), LONG)
    blocks = there.engine.next_blocks(pull)
    assert blocks is not None
    assert len(blocks) == 1
    reservation = there.engine.reserve(there.engine.pool.free * SIZE)
    assert reservation is not None
    for _ in range(6):
        there.step()
        blocks += there.engine.next_blocks(pull) or []
    assert there.engine.scheduler.preemptions == 0
    assert there.holds(blocks, LONG)
    assert len(blocks) == 4
    assert there.engine.confirm_pull(pull)
    there.engine.close_pull(pull)
    assert there.engine.release(reservation)
    there.finish(first)
    assert there.held == 0


def test_a_closed_pull_lets_go_of_what_it_was_given(there: Prefill) -> None:
    name = there.ask()
    pull = there.pull(there.early(name))
    (block,) = there.engine.next_blocks(pull) or ()
    there.engine.abort(name)
    assert there.engine.pool.holders(block) == 1, "only the pull keeps it"
    there.engine.close_pull(pull)
    assert there.engine.pool.holders(block) == 0
    assert there.engine.stats.kv_transfers_failed == 1
    assert there.held == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"engine_id": "earlier"}, "earlier process"),
        ({"digest": "other"}, "differ"),
        ({"name": "0" * 32}, "used up, expired or unknown"),
        ({"name": ""}, "used up, expired or unknown"),
        ({"content": b"other"}, "another prompt"),
        ({"prompt": PROMPT[:9]}, "another prompt"),
        ({"prompt": PROMPT[:8]}, "another prompt"),
        ({"prompt": [*PROMPT, 1]}, "another prompt"),
        ({"first": 4}, "another prompt"),
    ],
    ids=str,
)
@pytest.mark.parametrize("computing", [True, False])
def test_what_was_not_promised_is_refused_and_counted(
    there: Prefill, changes: dict, reason: str, computing: bool
) -> None:
    name = there.ask()
    ticket = there.early(name) if computing else there.closed(name)
    before = there.held
    with pytest.raises(TransferError, match=reason):
        there.pull(ticket, **changes)
    assert there.engine.stats.kv_transfers_refused == 1
    assert there.engine.stats.kv_transfers_failed == 0
    assert (there.held, len(there.engine.tickets.pulls)) == (before, 0)
    there.engine.close_pull(there.pull(ticket))


def test_a_ticket_over_other_salt_is_another_prompts() -> None:
    there, salted = Prefill(), BlockKeys(b"salted", SIZE).content(PROMPT, 10)
    with pytest.raises(TransferError, match="another prompt"):
        there.pull(there.closed(there.ask()), content=salted)


def test_a_used_ticket_is_good_for_nothing_more(there: Prefill) -> None:
    ticket = there.closed(there.ask())
    pull = there.pull(ticket)
    there.engine.next_blocks(pull)
    assert there.engine.confirm_pull(pull)
    there.engine.close_pull(pull)
    with pytest.raises(TransferError, match="used up"):
        there.pull(ticket)
    assert not there.engine.release(ticket.remote_request_id or "")
    stats = there.engine.stats
    assert (stats.kv_transfers_sent, stats.kv_blocks_sent) == (1, 3)
    assert (stats.kv_transfers_refused, stats.kv_transfers_failed) == (1, 0)
    assert there.held == 0


def test_of_two_pulls_of_one_ticket_one_is_confirmed(there: Prefill) -> None:
    ticket = there.closed(there.ask())
    pulls = [there.pull(ticket) for _ in range(2)]
    blocks = [there.engine.next_blocks(pull) for pull in pulls]
    assert blocks[0] == blocks[1]
    assert there.engine.confirm_pull(pulls[1])
    there.engine.close_pull(pulls[1])
    assert there.held == 3, "the other one still reads them"
    with pytest.raises(TransferError, match="released, used or expired meanwhile"):
        there.engine.next_blocks(pulls[0])
    assert not there.engine.confirm_pull(pulls[0])
    there.engine.close_pull(pulls[0])
    assert there.held == 0
    assert (there.engine.stats.kv_transfers_sent, there.engine.stats.kv_transfers_failed) == (1, 1)


def test_one_ticket_is_not_pulled_without_end(there: Prefill) -> None:
    ticket, other = there.closed(there.ask()), there.closed(there.ask([*PROMPT, 1]))
    pulls = [there.pull(ticket) for _ in range(64)]
    with pytest.raises(TransferError, match="is being pulled 64 times already; pull it once"):
        there.pull(ticket)
    there.engine.close_pull(there.pull(other, [*PROMPT, 1]))
    there.engine.close_pull(pulls.pop())
    there.pull(ticket)


def test_a_pull_that_broke_off_leaves_the_ticket_good(there: Prefill) -> None:
    ticket = there.closed(there.ask())
    broken = there.pull(ticket)
    there.engine.next_blocks(broken)
    there.engine.close_pull(broken)
    assert there.held == 3
    pull = there.pull(ticket)
    assert len(there.engine.next_blocks(pull) or ()) == 3
    assert there.engine.confirm_pull(pull)


def test_a_ticket_nobody_pulls_expires_and_one_that_is_awaited_does_not(there: Prefill) -> None:
    lost, awaited = (there.closed(there.ask([*PROMPT, tail])) for tail in (1, 2))
    for _ in range(3):
        there.now += LEASE - 1
        there.engine.keep(Keep("e", [awaited.remote_request_id or "", "unknown"]))
        there.engine.keep(Keep("earlier", [lost.remote_request_id or ""]))
        there.step()
    assert (len(there.engine.tickets), there.engine.tickets.expired) == (1, 1)
    with pytest.raises(TransferError, match="expired"):
        there.pull(lost, [*PROMPT, 1])
    there.engine.close_pull(there.pull(awaited, [*PROMPT, 2]))


def test_a_ticket_that_expires_under_its_pull_is_not_confirmed_and_its_blocks_stay_until_the_end(
    there: Prefill,
) -> None:
    pull = there.pull(there.closed(there.ask()))
    blocks = there.engine.next_blocks(pull)
    assert blocks is not None
    there.now += LEASE
    there.step()
    assert there.held == 3
    there.ask([7] * 60, keep=False)
    for _ in range(20):
        there.step()
        assert there.holds(blocks, PROMPT)
    assert not there.engine.confirm_pull(pull)
    there.engine.close_pull(pull)
    assert there.held == 0


def test_a_prefill_that_takes_long_does_not_lose_its_ticket(there: Prefill) -> None:
    name = there.ask()
    pull = there.pull(there.early(name))
    there.now += 10 * LEASE
    there.closed(name)
    assert len(there.engine.next_blocks(pull) or ()) == 3
    assert there.engine.confirm_pull(pull)


@pytest.mark.parametrize("waiting", [True, False])
def test_a_ticket_released_while_it_is_computed_stops_the_prefill(there: Prefill, waiting: bool) -> None:
    name = there.ask()
    if waiting:
        (ticket,) = there.engine.tickets.open_ones
        released = ticket.name
    else:
        early = there.early(name)
        released = early.remote_request_id or ""
        pull = there.pull(early)
        there.engine.next_blocks(pull)
    assert there.engine.release(released)
    assert there.step() == 0
    if not waiting:
        with pytest.raises(TransferError, match="aborted"):
            there.engine.next_blocks(pull)
        there.engine.close_pull(pull)
    assert there.engine.stats.ended == {Status.ABORTED: 1}
    assert not there.engine.release(released)
    assert there.held == 0


def test_whoever_waits_for_a_prefill_whose_ticket_was_released_learns_that_it_ended(there: Prefill) -> None:
    name = there.ask(choices=(0, 1))
    there.engine.release(there.early(name).remote_request_id or "")
    there.step()
    last = there.told[name][-1]
    assert last.reason == "error"
    assert "released" in (last.error or "")


@pytest.mark.parametrize("pulling", [True, False])
def test_a_released_ticket_gives_its_blocks_back(there: Prefill, pulling: bool) -> None:
    ticket = there.closed(there.ask())
    if pulling:
        pull = there.pull(ticket)
        there.engine.next_blocks(pull)
    assert there.engine.release(ticket.remote_request_id or "")
    if pulling:
        assert there.held == 3
        there.engine.close_pull(pull)
    assert (there.held, len(there.engine.tickets)) == (0, 0)


@pytest.mark.parametrize("computed", [0, 1, 2])
def test_a_prefill_that_is_aborted_takes_its_ticket_with_it(there: Prefill, computed: int) -> None:
    name = there.ask()
    (ticket,) = there.engine.tickets.open_ones
    for _ in range(computed):
        there.step()
    there.engine.abort(name)
    assert there.engine.tickets.computing(ticket.name) is None
    assert (there.held, len(there.engine.tickets)) == (0, 0)


def test_a_finished_prefills_ticket_outlives_its_request(there: Prefill) -> None:
    name = there.ask()
    ticket = there.closed(name)
    there.engine.abort(name)
    assert len(there.engine.next_blocks(there.pull(ticket)) or ()) == 3


def test_a_handed_over_state_carries_every_choices_first_token(there: Prefill) -> None:
    name = there.ask(choices=(0, 1, 2))
    pull = there.pull(there.closed(name))
    there.engine.next_blocks(pull)
    assert pull.ticket.state is not None
    state = HandOff.decode(pull.ticket.state)
    last = there.told[name][-3:]
    assert [update.choice for update in last] == [0, 1, 2]
    assert [(sampled.token,) for sampled in state.first] == [update.tokens for update in last]
    assert all(update.reason == "length" and update.ticket is not None for update in last)


def test_prompts_that_are_known_are_pulled_at_once(there: Prefill) -> None:
    there.engine.release(there.closed(there.ask()).remote_request_id or "")
    there.ask([*PROMPT[:8], 5, 5, 5, 5, 5, 5])
    plan, _, ((_, update),) = there.engine.plan()
    assert update.ticket is not None
    blocks = there.engine.next_blocks(there.pull(update.ticket, [*PROMPT[:8], 5, 5, 5, 5, 5, 5]))
    assert blocks is not None
    assert there.holds(blocks, PROMPT[:8])
    assert plan.tokens == 4


def test_a_ticket_is_called_what_its_request_wishes() -> None:
    there = Prefill()
    first = there.ask(ticket_name="mine")
    with pytest.raises(RequestError, match="there is a ticket mine already") as caught:
        there.ask(ticket_name="mine")
    assert caught.value.status == 409
    assert there.early(first).remote_request_id == "mine"
    there.finish(first)
    assert there.engine.release("mine")  # by somebody who may never have got the answer
    assert there.engine.pool.free == there.engine.pool.count
    assert there.early(there.ask(ticket_name="mine")).remote_request_id == "mine"
