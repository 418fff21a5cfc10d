"""Two engines under random sequences of everything that can happen; blocks and answers have to stay right."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, precondition, rule
from reference.ledger import LedgerModel, greedy

from tandem.engine.engine import Engine, EngineOptions
from tandem.engine.fetch import Fetch
from tandem.engine.handoff import HandOff
from tandem.engine.plan import Plan
from tandem.engine.request import Request
from tandem.engine.runner import Runner
from tandem.engine.sampling import SamplingParams
from tandem.engine.scheduler import SchedulerLimits
from tandem.engine.tickets import EngineIdentity, PullState
from tandem.errors import RequestError, TransferError
from tandem.kv.blocks import BlockPool
from tandem.kv.messages import Keep, Pull
from tandem.kv.prefix import root_key
from tandem.protocol.kv import KVTransferParams

SIZE, BLOCKS, LEASE, BUDGET = 4, 9, 10.0, 6


class Letters:
    """A tokenizer of one letter per token."""

    drops_first_space = False

    def bytes_of(self, token: int) -> bytes:
        return bytes([97 + token])


@dataclass
class Side:
    """One instance, with the step that is under way on it."""

    name: str
    engine: Engine
    model: LedgerModel
    plan: Plan | None = None
    sampled: list = field(default_factory=list)


@dataclass
class Travel:
    """A pull under way on both sides."""

    fetch: Fetch
    pull: PullState
    done: int = 0
    named: list[int] = field(default_factory=list)
    """Blocks that the holder has named and that are still to be copied."""
    given: list[int] = field(default_factory=list)
    """All blocks that the holder has named; a transport may read them until the pull is closed."""


def side(name: str, clock) -> Side:
    model = LedgerModel(SIZE)
    options = EngineOptions(
        limits=SchedulerLimits(max_num_seqs=4, max_num_batched_tokens=BUDGET),
        root=lambda request: root_key(adapter=None, rotation=0, dtype="float32", salt=request.salt),
        lease_seconds=LEASE,
        recompute=name == "decode",
    )
    identity = EngineIdentity(engine_id=name, digest="same", host="here", port=1)
    return Side(name, Engine(Runner(model), BlockPool(BLOCKS, SIZE), Letters(), options, identity, clock), model)


# Few different tokens and common beginnings, so that blocks are shared.
prompts = st.tuples(st.integers(0, 2), st.integers(1, 20)).map(lambda t: [t[0]] * min(t[1], 9) + [3] * max(t[1] - 9, 0))


class Machine(RuleBasedStateMachine):
    """Every rule is one thing a client, a step thread, a transfer or the clock may do."""

    requests = Bundle("requests")
    names = Bundle("names")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.ids = itertools.count()
        self.sides = {name: side(name, lambda: self.now) for name in ("prefill", "decode")}
        self.asked: dict[str, tuple[Side, Request]] = {}
        self.tokens: dict[tuple[str, int], list[int]] = {}
        self.fetches: list[Fetch] = []
        self.travels: list[Travel] = []
        self.tickets: list[tuple[KVTransferParams, list[int], int]] = []

    def _submit(self, where: str, prompt: list[int], **fields) -> str | None:
        there = self.sides[where]
        count = fields.pop("max_tokens", 1)
        request = Request(id=f"r{next(self.ids)}", prompt=prompt, sampling=SamplingParams(max_tokens=count), **fields)
        try:
            there.engine.submit(request)
        except RequestError:
            return None
        self.asked[request.id] = there, request
        return request.id

    def _heard(self, there: Side, updates) -> None:
        for name, update in updates:
            request = self.asked[name][1]
            got = self.tokens.setdefault((name, update.choice), list(request.output))
            got.extend(update.tokens)
            if update.error is None:
                assert got == greedy(request.prompt, len(got)), f"{there.name}: {name} went wrong"
            if request.keep_for_remote and update.ticket is not None:
                self.tickets.append((update.ticket, request.prompt, len(request.choices)))

    @rule(
        target=requests,
        where=st.sampled_from(["prefill", "decode"]),
        prompt=prompts,
        count=st.integers(1, 12),
        choices=st.integers(1, 3),
        priority=st.integers(0, 1),
        patience=st.sampled_from([5.0, 1e9]),
        resumed=st.integers(0, 3),
    )
    def ask(self, where, prompt, count, choices, priority, patience, resumed):
        output = tuple(greedy(prompt, min(resumed, count - 1))) if choices == 1 else ()
        name = self._submit(
            where,
            prompt,
            max_tokens=count,
            choices=tuple(range(choices)),
            priority=priority,
            deadline=self.now + patience,
            output=output,
        )
        return multiple() if name is None else name

    @rule(target=requests, prompt=prompts, choices=st.integers(1, 2))
    def prefill(self, prompt, choices):
        name = self._submit("prefill", prompt, keep_for_remote=True, choices=tuple(range(choices)))
        return multiple() if name is None else name

    @precondition(lambda self: self.tickets)
    @rule(target=requests, data=st.data(), count=st.integers(1, 9), foreign=st.sampled_from([False, False, True]))
    def hand_over(self, data, count, foreign):
        ticket, prompt, choices = data.draw(st.sampled_from(self.tickets))
        prompt = [*prompt, 5] if foreign else prompt
        name = self._submit("decode", prompt, max_tokens=count, choices=tuple(range(choices)), fetch_from=ticket)
        return multiple() if name is None else name

    @rule(target=requests, prompt=prompts, count=st.integers(1, 9), steps=st.integers(1, 3))
    def prefill_and_hand_over(self, prompt, count, steps):
        """A request's usual way apart; when it is handed over the prefill may still go on."""
        before = len(self.tickets)
        name = self.prefill(prompt, 1)
        self.whole_steps(steps, False)
        mine = [ticket for ticket in self.tickets[before:] if ticket[1] is self.asked[name][1].prompt]
        if not mine:
            return name
        other = self._submit("decode", prompt, max_tokens=count, fetch_from=mine[0][0])
        self.whole_steps(1, True)
        self.whole_steps(1, True)
        return multiple(name, other)

    @rule(
        target=requests,
        where=st.sampled_from(["prefill", "decode"]),
        short=st.integers(1, 7),
        long=st.integers(10, 20),
        keep=st.booleans(),
    )
    def squeeze(self, where, short, long, keep):
        """A long prompt that goes first needs blocks that a decoding one has got, because others are leased."""
        engine = self.sides[where].engine
        late = self._submit(where, [4] * short, max_tokens=12, priority=1)
        self.whole_steps(1, True)
        early = self._submit(where, [6] * long, max_tokens=1 if keep else 3, keep_for_remote=keep, priority=-1)
        self.whole_steps(1, True)
        name = engine.reserve(engine.pool.free * SIZE) if engine.pool.free else None
        self.whole_steps(3, True)
        if name is not None:
            engine.release(name)
        return multiple(late, early)

    @rule(name=consumes(requests))
    def abort(self, name):
        self.asked[name][0].engine.abort(name)

    @rule(where=st.sampled_from(["prefill", "decode"]))
    def begin_step(self, where):
        there = self.sides[where]
        if there.plan is None:
            there.plan, fetches, updates = there.engine.plan()
            self._heard(there, updates)
            self.fetches += fetches
            assert there.plan.tokens <= BUDGET

    @rule(where=st.sampled_from(["prefill", "decode"]))
    def end_step(self, where):
        there = self.sides[where]
        if there.plan is not None:
            sampled = there.engine.run(there.plan) if there.plan.works else []
            self._heard(there, there.engine.commit(there.plan, sampled))
            there.plan = None

    @rule(count=st.integers(1, 6), pulling=st.booleans())
    def whole_steps(self, count, pulling):
        """Both sides go on for a while; most of what goes wrong needs a few steps to come about."""
        for _ in range(count):
            for where in self.sides:
                self.end_step(where)
                self.begin_step(where)
            if pulling:
                while self.fetches:
                    self.begin_pull()
                for travel in list(self.travels):
                    if travel in self.travels:
                        self._pull(travel)
            self.every_block_has_its_owners()

    @precondition(lambda self: self.fetches)
    @rule()
    def begin_pull(self):
        fetch = self.fetches.pop(0)
        ticket = fetch.sequence.request.fetch_from
        asked = Pull(
            ticket=ticket.remote_request_id,
            engine_id=ticket.remote_engine_id,
            digest="same",
            content=fetch.content,
            first=fetch.first,
        )
        try:
            self.travels.append(Travel(fetch, self.sides["prefill"].engine.open_pull(asked)))
        except TransferError as error:
            self._lose(fetch, str(error))

    @precondition(lambda self: self.travels)
    @rule(data=st.data())
    def pull_on(self, data):
        self._pull(data.draw(st.sampled_from(self.travels)))

    def _pull(self, travel: Travel) -> None:
        prefill, decode = self.sides["prefill"], self.sides["decode"]
        if travel.named:
            into = travel.fetch.blocks[travel.done : travel.done + len(travel.named)]
            decode.model.copy(prefill.model, travel.named, into)
            travel.done += len(travel.named)
            travel.named = []
            return
        try:
            blocks = prefill.engine.next_blocks(travel.pull)
        except TransferError as error:
            self._drop(travel, str(error))
            return
        if blocks:
            travel.named = blocks
            travel.given += blocks
        elif blocks == []:
            assert travel.done == len(travel.fetch.blocks)
            state = travel.pull.ticket.state
            if prefill.engine.confirm_pull(travel.pull):
                prefill.engine.close_pull(travel.pull)
                self.travels.remove(travel)
                decode.engine.arrive(travel.fetch, HandOff.decode(state))
                decode.engine.end_fetch(travel.fetch)
            else:
                self._drop(travel, "used up")

    @precondition(lambda self: self.travels)
    @rule(data=st.data())
    def break_pull(self, data):
        self._drop(data.draw(st.sampled_from(self.travels)), "broke off")

    def _drop(self, travel: Travel, error: str) -> None:
        self.sides["prefill"].engine.close_pull(travel.pull)
        self.travels.remove(travel)
        self._lose(travel.fetch, error)

    def _lose(self, fetch: Fetch, error: str) -> None:
        decode = self.sides["decode"].engine
        decode.miss(fetch, error)
        decode.end_fetch(fetch)

    @rule(seconds=st.sampled_from([1.0, 4.0, 11.0]))
    def wait(self, seconds):
        self.now += seconds

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), renew=st.booleans())
    def release_or_renew(self, data, renew):
        name = data.draw(st.sampled_from(self.tickets))[0].remote_request_id
        engine = self.sides["prefill"].engine
        engine.keep(Keep("prefill", [name])) if renew else engine.release(name)

    @rule(target=names, where=st.sampled_from(["prefill", "decode"]), tokens=st.integers(1, 40))
    def reserve(self, where, tokens):
        name = self.sides[where].engine.reserve(tokens)
        return multiple() if name is None else (where, name)

    @rule(name=consumes(names), prompt=prompts, use=st.booleans())
    def use_or_release_reservation(self, name, prompt, use):
        if use:
            self._submit(name[0], prompt, max_tokens=5, reservation=name[1])
        else:
            self.sides[name[0]].engine.release(name[1])

    @invariant()
    def every_block_has_its_owners(self):
        for there in self.sides.values():
            audit = there.engine.audit()
            assert (audit.leaked, audit.torn, audit.doubly_owned) == (0, 0, 0), f"{there.name}: {audit}"

    @invariant()
    def what_travels_stays(self):
        pool = self.sides["prefill"].engine.pool
        for travel in self.travels:
            assert all(pool.holders(block) for block in travel.given), "a block was given away while it may be read"

    def _quiet(self, there: Side) -> bool:
        audit = there.engine.audit()
        return audit.free == audit.blocks and not there.engine.scheduler.waiting and not there.engine.scheduler.running

    def _keep_leases(self) -> None:
        """Whoever waits says so, however long: only what both sides do for each other ends anything."""
        for ticket in self.sides["decode"].engine.awaited():
            self.sides["prefill"].engine.keep(Keep("prefill", [ticket.remote_request_id]))

    def teardown(self):
        """Left alone, everything ends, and every block is free again."""
        for _ in range(200 + 20 * len(self.asked)):
            self._keep_leases()
            self.whole_steps(1, True)
            self.now += 0.5
            if not self.travels and all(self._quiet(there) for there in self.sides.values()):
                break
        for there in self.sides.values():
            audit = there.engine.audit()
            assert audit.free == audit.blocks, f"{there.name}: {audit}"
            assert not there.engine.scheduler.waiting
            assert not there.engine.scheduler.running


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=100, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.full
def test_for_long() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=1500, stateful_step_count=120, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
