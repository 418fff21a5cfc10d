"""The scheduler alone: who is computed in a step, who gives blocks up for whom, and that nobody waits for ever."""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Items

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.engine.plan import Plan
from tandem.engine.request import Request
from tandem.engine.sampled import Sampled
from tandem.engine.sampling import SamplingParams
from tandem.engine.scheduler import Scheduler, SchedulerLimits
from tandem.engine.sequence import Sequence, Status
from tandem.kv.blocks import BlockPool
from tandem.kv.lease import Lease, LeaseBook
from tandem.kv.prefix import BlockKeys
from tandem.protocol.kv import KVTransferParams

SIZE = 4
TICKET = KVTransferParams(do_remote_prefill=True)


class Letters:
    """A tokenizer of one letter per token."""

    drops_first_space = False

    def bytes_of(self, token: int) -> bytes:
        return bytes([97 + token % 26])


class Desk:
    """A scheduler, its pool, and a model that always says 5."""

    def __init__(self, blocks: int = 8, seqs: int = 8, budget: int = 100, *, sharing: bool = True) -> None:
        self.pool = BlockPool(blocks, SIZE)
        self.now = 0.0
        self.reservations: LeaseBook[Lease] = LeaseBook(30, self.pool.release, lambda: self.now)
        limits = SchedulerLimits(max_num_seqs=seqs, max_num_batched_tokens=budget)
        self.scheduler = Scheduler(self.pool, limits, self.reservations, sharing=sharing)
        self._arrivals = itertools.count()

    def ask(self, prompt: int | Items[int], count: int = 8, reservation: Lease | None = None, **fields) -> Sequence:
        """A sequence in the queue; a number stands for a prompt of that length that shares nothing."""
        arrival = next(self._arrivals)
        tokens = [arrival + 100] * prompt if isinstance(prompt, int) else list(prompt)
        request = Request(id=f"r{arrival}", prompt=tokens, sampling=SamplingParams(max_tokens=count), **fields)
        one = Sequence(request, Letters(), BlockKeys(b"", SIZE), arrival=arrival, choice=0)
        one.reservation = reservation
        self.scheduler.add(one)
        return one

    def reserve(self, blocks: int) -> Lease:
        lease = Lease(self.pool.allocate(blocks))
        self.reservations.add(lease)
        self.reservations.begin(lease)
        return lease

    def commit(self, plan: Plan) -> None:
        """What the engine does with a computed plan."""
        sampling = [work.samples for work in plan.works]
        for work, samples in zip(plan.works, sampling, strict=True):
            one = work.sequence
            assert one.blocks is work.blocks, "a sequence was planned whose blocks were taken away"
            one.cached += work.count
            self.scheduler.publish(one)
            if samples:
                ended = one.append(Sampled(5)).reason is not None
                if ended:
                    self.end(one)
                elif one.status is not Status.DECODING:
                    one.move(Status.DECODING)

    def end(self, one: Sequence) -> None:
        self.scheduler.remove(one)
        one.move(Status.FINISHED)

    def step(self) -> Plan:
        plan = self.scheduler.plan()
        self.commit(plan)
        return plan

    def arrive(self, one: Sequence) -> None:
        """The blocks of a sequence in TRANSFERRING are here, and its first token."""
        one.fetches = False
        one.cached = len(one.token_ids)
        one.append(Sampled(5))
        one.move(Status.DECODING)


def computed(plan: Plan) -> list[tuple[Sequence, int]]:
    return [(work.sequence, work.count) for work in plan.works]


def test_decodes_come_first_and_prompts_get_what_is_left_of_the_budget() -> None:
    desk = Desk(blocks=20, budget=10)
    long = desk.ask(25)
    first = desk.step()
    assert computed(first) == [(long, 10)]
    short = desk.ask(3, priority=-1)
    assert computed(desk.step()) == [(long, 10)], "nobody is interrupted"
    assert computed(desk.step()) == [(long, 5), (short, 3)]
    other = desk.ask(30)
    assert computed(desk.step()) == [(short, 1), (long, 1), (other, 8)]


@given(
    prompts=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 12), st.integers(0, 4)), min_size=1, max_size=8),
    budget=st.integers(4, 40),
    seqs=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_no_prompt_keeps_a_running_decode_from_a_token(
    prompts: list[tuple[int, int, int]], budget: int, seqs: int
) -> None:
    desk = Desk(blocks=100, seqs=seqs, budget=budget)
    asked = [desk.ask(prompt, count, priority=priority) for prompt, count, priority in prompts]
    while not all(one.ended for one in asked):
        decoding = [one for one in desk.scheduler.running if one.status is Status.DECODING]
        plan = desk.step()
        assert computed(plan)[: len(decoding)] == [(one, 1) for one in decoding]
        assert 0 < plan.tokens <= budget
        assert len(desk.scheduler.running) <= seqs
    assert desk.scheduler.preemptions == 0
    assert desk.pool.free == 100


def test_the_queue_goes_by_priority_and_then_by_arrival() -> None:
    desk = Desk(blocks=20, seqs=1)
    asked = [desk.ask(2, 1, priority=priority) for priority in (1, 0, 2, 0, -1)]
    order = [work.sequence for _ in range(5) for work in desk.step().works]
    assert order == [asked[4], asked[1], asked[3], asked[0], asked[2]]


def test_no_more_than_so_many_sequences_run() -> None:
    desk = Desk(blocks=20, seqs=2)
    first, second, third = (desk.ask(2, count) for count in (1, 5, 5))
    assert [one for one, _ in computed(desk.step())] == [first, second]
    assert [one for one, _ in computed(desk.step())] == [second, third]


def test_the_head_of_the_queue_is_not_overtaken_by_one_that_would_fit() -> None:
    desk = Desk(blocks=6)
    running, big, small = desk.ask(15, 5), desk.ask(13, 2), desk.ask(1, 1)
    while not running.ended:
        assert [one for one, _ in computed(desk.step())] == [running]
        assert desk.scheduler.waiting == [big, small]
    assert [one for one, _ in computed(desk.step())] == [big, small]


def test_the_head_of_the_queue_gets_its_turn_however_many_come_after_it() -> None:
    desk = Desk(blocks=6)
    for _ in range(3):
        desk.ask(4, 6)
    desk.step()
    big = desk.ask(20, 2)
    steps = 0
    while not big.ended:
        desk.ask(1, 2)
        desk.step()
        steps += 1
        assert steps < 20


def test_whoever_is_admitted_leaves_a_block_for_everybody_who_grows() -> None:
    desk = Desk(blocks=5)
    desk.ask(4, 5)
    desk.step()
    # The first one takes its second block. Of three, two are for eight tokens and one is for the first one's growth.
    second = desk.ask(7, 5)
    third = desk.ask(1, 1)
    desk.step()
    assert second in desk.scheduler.running
    assert desk.scheduler.waiting == [third]


def test_the_last_in_order_gives_its_blocks_up() -> None:
    desk = Desk(blocks=4)
    first, second, third = desk.ask(4, 12), desk.ask(4, 12, priority=1), desk.ask(4, 12)
    while not desk.scheduler.preemptions:
        desk.step()
    assert second.status is Status.WAITING
    assert (second.blocks, second.cached) == ([], 0)
    assert [one.status for one in (first, third)] == [Status.DECODING] * 2


def test_a_sequence_that_is_the_last_itself_waits() -> None:
    desk = Desk(blocks=3)
    first, last = desk.ask(4, 9), desk.ask(4, 3)
    while last.status is not Status.WAITING or not desk.scheduler.preemptions:
        desk.step()
    assert len(first.blocks) == 2
    assert first.status is Status.DECODING
    assert last.output_count >= 1


def test_a_preempted_sequence_goes_on_where_it_was() -> None:
    desk = Desk(blocks=4, sharing=False)
    asked = [desk.ask(6, 9), desk.ask(5, 9)]
    again: list[int] = []
    while not all(one.ended for one in asked):
        before = {one: one.output_count for one in asked}
        plan = desk.step()
        again += [work.count for work in plan.works if work.start == 0 and before[work.sequence] > 0]
        assert all(one.output_count >= before[one] for one in asked)
    assert desk.scheduler.preemptions > 0
    assert len(again) == desk.scheduler.preemptions
    assert all(count > 5 for count in again), "prompt and answer are computed again"
    assert [one.output_count for one in asked] == [9, 9]
    assert desk.pool.free == 4


def test_one_that_was_planned_already_is_left_out_when_its_blocks_are_taken() -> None:
    desk = Desk(blocks=8, budget=8)
    late = desk.ask(5, 6, priority=1)
    desk.step()
    early = desk.ask(14, 9)  # comes later and goes first
    desk.step()
    assert (early.status, late.status) == (Status.PREFILLING, Status.DECODING)
    taken = desk.pool.allocate(desk.pool.free)  # what is left goes to a request still to come
    held = set(late.blocks)
    plan = desk.scheduler.plan()
    assert desk.scheduler.preemptions == 1
    assert late.status is Status.WAITING
    assert computed(plan) == [(early, 7)]
    assert held & set(early.blocks), "nothing was taken that was planned to be written"
    desk.commit(plan)
    desk.pool.release(taken)
    while not (early.ended and late.ended):
        desk.step()
    assert (early.output_count, late.output_count) == (9, 6)


def test_blocks_that_are_written_by_another_instance_are_never_taken() -> None:
    desk = Desk(blocks=4)
    first = desk.ask(4, 12)
    pulling = desk.ask(8, 3, fetch_from=TICKET, priority=5)
    desk.step()
    assert pulling.status is Status.TRANSFERRING
    blocks = list(pulling.blocks)
    for _ in range(10):
        desk.step()
        assert pulling.status is Status.TRANSFERRING
        assert pulling.blocks == blocks
    assert first.cached <= 8
    assert not first.ended
    desk.arrive(pulling)
    while not first.ended:
        desk.step()


def test_one_that_pulls_gets_all_its_blocks_at_once_and_computes_nothing() -> None:
    desk = Desk(budget=8)
    other, pulling = desk.ask(8), desk.ask(9, 3, fetch_from=TICKET)
    plan = desk.step()
    assert computed(plan) == [(other, 8)]
    assert plan.admitted == [other, pulling], "a spent budget keeps nobody from pulling"
    assert len(pulling.blocks) == 3
    assert pulling.cached == 0


def test_one_sequence_alone_keeps_what_it_has_while_leases_are_in_the_way() -> None:
    desk = Desk(blocks=4)
    alone = desk.ask(8, 8)
    desk.step()
    lease = desk.pool.allocate(2)
    blocks = list(alone.blocks)
    for _ in range(3):
        assert computed(desk.step()) == []
        assert (alone.status, alone.blocks) == (Status.DECODING, blocks)
    desk.pool.release(lease)
    while not alone.ended:
        desk.step()
    assert desk.scheduler.preemptions == 0


def test_reserved_blocks_are_kept_for_whom_they_were_reserved_for() -> None:
    desk = Desk(blocks=6)
    lease = desk.reserve(3)
    big = desk.ask(13, 5)
    desk.step()
    assert desk.scheduler.waiting == [big]
    reserved = desk.ask(9, 4, lease, priority=9)
    plan = desk.step()
    assert plan.works[0].sequence is reserved
    assert len(desk.reservations) == 0
    while not (reserved.ended and big.ended):
        desk.step()
    assert desk.pool.free == 6


def test_a_reservation_that_is_too_small_is_filled_up_from_what_is_free() -> None:
    desk = Desk(blocks=4)
    other = desk.pool.allocate(1)
    one = desk.ask(13, 4, desk.reserve(2))
    assert computed(desk.step()) == []
    assert len(desk.reservations) == 1, "it is kept until it helps"
    desk.pool.release(other)
    assert computed(desk.step()) == [(one, 13)]
    assert len(desk.reservations) == 0


def test_reserved_blocks_come_back_when_their_sequence_ends_before_it_is_admitted() -> None:
    desk = Desk(blocks=4)
    one = desk.ask(13, 4, desk.reserve(2))
    desk.end(one)
    assert desk.pool.free == 4


def test_a_reservation_that_expired_is_no_reservation() -> None:
    desk = Desk(blocks=4)
    one = desk.ask(7, 2, desk.reserve(2))
    desk.now = 31
    desk.reservations.expire()
    assert computed(desk.step()) == [(one, 7)]


def test_who_waits_wants_what_was_not_reserved_for_it() -> None:
    desk = Desk(blocks=8)
    desk.ask(13, 4, desk.reserve(2))
    desk.ask(5)
    desk.ask(3, 4, desk.reserve(2))
    assert desk.scheduler.wanted == 2 + 2 + 0


def test_what_another_instance_pulls_has_all_its_blocks_from_the_beginning_and_keeps_them() -> None:
    """Two instances that take blocks from what the other one waits for would wait for each other for ever."""
    desk = Desk(blocks=6, budget=5)
    first = desk.ask(4, 20)
    kept = desk.ask(13, 1, keep_for_remote=True, priority=5)
    desk.step()
    assert len(kept.blocks) == 4
    assert kept.cached == 1
    blocks = list(kept.blocks)
    while kept.status is Status.PREFILLING:
        assert kept.blocks == blocks
        desk.step()
    assert first.output_count >= 3
    assert desk.scheduler.preemptions == 0


@pytest.mark.parametrize(("length", "found"), [(3, 0), (4, 0), (5, 4), (8, 4), (9, 8), (12, 8), (13, 12)])
def test_known_blocks_are_shared_and_the_last_token_is_computed_in_any_case(length: int, found: int) -> None:
    desk = Desk(blocks=10)
    tokens = list(range(13))
    first = desk.ask(tokens, 2)
    desk.step()
    second = desk.ask(tokens[:length], 2)
    plan = desk.scheduler.plan()
    work = next(work for work in plan.works if work.sequence is second)
    assert (work.start, work.count, work.samples) == (found, length - found, True)
    assert second.blocks[: found // SIZE] == first.blocks[: found // SIZE]
    assert (desk.scheduler.prefix_queries, desk.scheduler.prefix_hits) == (13 + length, found)


@pytest.mark.parametrize(("length", "found"), [(7, 4), (8, 8)])
def test_one_that_pulls_needs_no_last_token(length: int, found: int) -> None:
    desk = Desk(blocks=10)
    tokens = list(range(13))
    desk.ask(tokens, 2)
    desk.step()
    pulling = desk.ask(tokens[:length], 2, fetch_from=TICKET)
    desk.step()
    assert (pulling.cached, pulling.published, len(pulling.blocks)) == (found, found // SIZE, 2)


def test_blocks_are_known_once_they_are_computed_and_not_before() -> None:
    desk = Desk(blocks=20, budget=6)
    tokens = list(range(16))
    desk.ask(tokens, 1)
    desk.step()
    desk.scheduler.plan()
    assert desk.pool.known == 1, "6 tokens are computed: one block is full"


def test_without_sharing_nothing_is_known() -> None:
    desk = Desk(blocks=20, sharing=False)
    for _ in range(2):
        desk.ask(list(range(12)), 3)
        desk.step()
    assert (desk.pool.known, desk.scheduler.prefix_hits) == (0, 0)


def test_answers_are_known_too() -> None:
    desk = Desk(blocks=20)
    first = desk.ask(list(range(6)), 7)
    while not first.ended:
        desk.step()
    second = desk.ask([*range(6), *[5] * 7], 2)
    desk.step()
    assert desk.scheduler.prefix_hits == 12
    assert second.cached == 13


def test_known_blocks_that_nobody_holds_are_room_only_once() -> None:
    desk = Desk(blocks=4)
    first = desk.ask(list(range(8)), 1)
    desk.step()
    assert first.ended
    assert (desk.pool.free, desk.pool.known) == (4, 2)
    # Its own two known blocks are free, but not for the two that it needs besides and the one that is leased.
    lease = desk.pool.allocate(1)
    second = desk.ask([*range(8), *range(50, 58)], 1)
    assert computed(desk.step()) == []
    assert desk.scheduler.waiting == [second]
    desk.pool.release(lease)
    assert computed(desk.step()) == [(second, 8)]


@given(
    asked=st.lists(
        st.tuples(st.integers(1, 24), st.integers(1, 8), st.integers(0, 2), st.booleans()), min_size=1, max_size=10
    ),
    blocks=st.integers(8, 12),
    budget=st.integers(4, 12),
    sharing=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_everybody_ends_and_every_block_comes_back(
    asked: list[tuple[int, int, int, bool]], blocks: int, budget: int, sharing: bool
) -> None:
    desk = Desk(blocks=blocks, seqs=4, budget=budget, sharing=sharing)
    sequences = [
        desk.ask([9] * length, count, priority=priority, fetch_from=TICKET if fetches else None)
        for length, count, priority, fetches in asked
    ]
    steps = 0
    while not all(one.ended for one in sequences):
        plan = desk.step()
        written = [
            (work.blocks[place // SIZE], place % SIZE)
            for work in plan.works
            for place in range(work.start, work.start + work.count)
        ]
        assert len(written) == len(set(written)), "two sequences write to one slot"
        for one in [one for one in desk.scheduler.running if one.status is Status.TRANSFERRING][:1]:
            desk.arrive(one)
            if one.output_count >= one.sampling.max_tokens:
                desk.end(one)
        steps += 1
        assert steps < 2000
    assert desk.pool.free == blocks
