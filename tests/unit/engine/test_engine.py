"""The engine without HTTP: batched equals alone, preempted equals undisturbed, apart equals together."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence as Items
from pathlib import Path

import pytest
import torch
from reference.ledger import LedgerModel, greedy

from tandem.engine.engine import Engine, EngineOptions
from tandem.engine.fetch import Fetch
from tandem.engine.handoff import HandOff
from tandem.engine.local_model import LocalModel
from tandem.engine.request import Request
from tandem.engine.runner import Runner
from tandem.engine.sampled import Sampled
from tandem.engine.sampling import SamplingParams
from tandem.engine.scheduler import SchedulerLimits
from tandem.engine.sequence import Sequence, Status
from tandem.engine.tickets import EngineIdentity
from tandem.engine.update import Update
from tandem.errors import RequestError
from tandem.kv.blocks import BlockPool
from tandem.kv.cache import CacheLayout, KVCache
from tandem.kv.messages import Pull
from tandem.kv.prefix import root_key
from tandem.model.context import CausalContext
from tandem.model.decoder import Decoder
from tandem.model.folder import load
from tandem.protocol.kv import KVTransferParams

SIZE = 4
CPU = torch.device("cpu")
TICKET = KVTransferParams(do_remote_prefill=True)
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5]


class Letters:
    """A tokenizer of one letter per token."""

    drops_first_space = False

    def bytes_of(self, token: int) -> bytes:
        return bytes([97 + token % 26])


class Instance:
    """An engine on a clock of our own, and what its requests were told."""

    def __init__(self, blocks: int = 40, model=None, size: int = SIZE, *, seqs: int = 8, budget: int = 64, **options):
        self.now = 0.0
        self.model = model or LedgerModel(size)
        self.told: dict[str, list[Update]] = {}
        self.fetches: list[Fetch] = []
        self._ids = itertools.count()
        self.engine = Engine(
            Runner(self.model),
            BlockPool(blocks, size),
            Letters(),
            EngineOptions(
                limits=SchedulerLimits(max_num_seqs=seqs, max_num_batched_tokens=budget),
                root=lambda request: root_key(adapter=None, rotation=0, dtype="float32", salt=request.salt),
                **options,
            ),
            EngineIdentity(engine_id="e", digest="d", host="127.0.0.1", port=1),
            lambda: self.now,
        )

    def ask(self, prompt: Items[int] = PROMPT, count: int = 8, **fields) -> str:
        sampling = fields.pop("sampling", None) or SamplingParams(max_tokens=count)
        name = f"r{next(self._ids)}"
        self.told[name] = []
        self.engine.submit(Request(id=name, prompt=list(prompt), sampling=sampling, **fields))
        return name

    def hear(self, updates: Items[tuple[str, Update]]) -> None:
        for name, update in updates:
            self.told[name].append(update)

    def step(self) -> int:
        """One whole step: how many tokens went through the model."""
        plan, fetches, updates = self.engine.plan()
        self.fetches += fetches
        self.hear(updates)
        if plan.works:
            self.hear(self.engine.commit(plan, self.engine.run(plan)))
        return plan.tokens

    def finish(self) -> None:
        for _ in range(1000):
            if not self.engine.scheduler.waiting and not self.engine.scheduler.running:
                return
            self.step()
        raise AssertionError("the engine does not finish")

    def tokens(self, name: str, choice: int = 0) -> list[int]:
        return [token for update in self.told[name] if update.choice == choice for token in update.tokens]

    def sequence(self, name: str) -> Sequence:
        scheduler = self.engine.scheduler
        return next(s for s in (*scheduler.waiting, *scheduler.running) if s.request.id == name)

    @property
    def held(self) -> int:
        """Blocks that somebody holds, with nothing amiss."""
        audit = self.engine.audit()
        assert (audit.leaked, audit.torn, audit.doubly_owned) == (0, 0, 0)
        return audit.blocks - audit.free


def hand_over(prefill: Instance, decode: Instance, copy, **fields) -> str:
    """A request's way apart, without sockets: prefill, ticket, pull, decode."""
    first = prefill.ask(keep_for_remote=True, **fields)
    prefill.finish()
    ticket = prefill.told[first][-1].ticket
    assert ticket is not None
    second = decode.ask(fetch_from=ticket, **fields)
    decode.step()
    fetch = decode.fetches.pop()
    asked = Pull(
        ticket=ticket.remote_request_id or "", engine_id="e", digest="d", content=fetch.content, first=fetch.first
    )
    pull = prefill.engine.open_pull(asked)
    blocks = prefill.engine.next_blocks(pull)
    assert blocks is not None
    copy(blocks, fetch.blocks)
    assert pull.ticket.state is not None
    decode.engine.arrive(fetch, HandOff.decode(pull.ticket.state))
    assert prefill.engine.confirm_pull(pull)
    prefill.engine.close_pull(pull)
    decode.engine.end_fetch(fetch)
    return second


@pytest.mark.parametrize("budget", [1, 3, 7, 64])
@pytest.mark.parametrize("sharing", [True, False])
def test_batched_and_in_pieces_equals_alone(budget: int, sharing: bool) -> None:
    there = Instance(budget=budget, seqs=3, sharing=sharing)
    prompts = [[*PROMPT, *range(length)] for length in (3, 9, 0, 1, 7)] + [[7]]
    names = [there.ask(prompt, 10) for prompt in prompts]
    there.finish()
    assert [there.tokens(name) for name in names] == [greedy(prompt, 10) for prompt in prompts]
    assert there.held == 0
    if not sharing:
        assert there.engine.stats.prompt_tokens_computed == sum(map(len, prompts))


@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize("budget", [4, 9, 64])
def test_a_preempted_answer_is_the_undisturbed_one(sharing: bool, budget: int) -> None:
    there = Instance(blocks=8, budget=budget, seqs=4, sharing=sharing)
    prompts = [[number, *PROMPT[:number]] for number in range(2, 9)]
    names = [there.ask(prompt, 14, priority=number % 3) for number, prompt in enumerate(prompts)]
    there.finish()
    assert there.engine.scheduler.preemptions > 0
    assert [there.tokens(name) for name in names] == [greedy(prompt, 14) for prompt in prompts]
    assert there.held == 0


def test_a_request_that_never_fits_is_refused() -> None:
    there = Instance(blocks=4)
    with pytest.raises(RequestError, match=r"needs 5 KV blocks and this instance has 4.*--kv-cache-gib"):
        there.ask(range(12), 6)
    name = there.ask(range(12), 5)
    there.finish()
    assert len(there.tokens(name)) == 5


def test_blocks_of_equal_prompts_are_shared_and_those_of_another_salt_are_not() -> None:
    there = Instance()
    stats, scheduler = there.engine.stats, there.engine.scheduler
    for salt, computed, hits in [(None, 9, 0), (None, 1, 8), ("mine", 9, 8), ("mine", 1, 16), ("yours", 9, 16)]:
        before = stats.prompt_tokens_computed
        name = there.ask(salt=salt)
        there.finish()
        assert there.tokens(name) == greedy(PROMPT, 8)
        assert stats.prompt_tokens_computed - before == computed
        assert scheduler.prefix_hits == hits


SAMPLED = SamplingParams(max_tokens=9, temperature=1.0, seed=17)


def alone(choice: int, sampling: SamplingParams = SAMPLED) -> list[int]:
    """What an instance that draws only this choice says."""
    there = Instance()
    name = there.ask(choices=(choice,), sampling=sampling)
    there.finish()
    return there.tokens(name, choice)


@pytest.mark.parametrize("blocks", [40, 7])
@pytest.mark.parametrize("sharing", [True, False])
def test_every_choice_is_what_it_would_be_alone(blocks: int, sharing: bool) -> None:
    there = Instance(blocks=blocks, sharing=sharing)
    name = there.ask(choices=(0, 1, 2, 3), sampling=SAMPLED)
    there.finish()
    answers = [there.tokens(name, choice) for choice in range(4)]
    assert answers == [alone(choice) for choice in range(4)]
    assert len({tuple(answer) for answer in answers}) == 4
    assert sum(update.reason == "length" for update in there.told[name]) == 4
    assert there.held == 0
    assert there.engine.stats.ended == {Status.FINISHED: 4}


def test_choices_share_the_blocks_of_their_prompt() -> None:
    there = Instance()
    name = there.ask(choices=(0, 1, 2), sampling=SAMPLED)
    there.step()
    assert there.held == 3
    there.step()
    # Two full blocks of the prompt are everybody's; each choice has a third of its own.
    assert there.held == 2 + 3
    assert there.engine.scheduler.prefix_hits == 16
    there.engine.abort(name)
    assert there.held == 0


def test_choices_of_one_token_all_end_with_it() -> None:
    there = Instance()
    name = there.ask(choices=(0, 1, 2), sampling=SamplingParams(max_tokens=1, temperature=1.0, seed=17))
    there.step()
    assert [(update.choice, update.reason) for update in there.told[name]] == [(n, "length") for n in range(3)]
    assert [there.tokens(name, choice) for choice in range(3)] == [alone(choice)[:1] for choice in range(3)]
    assert there.held == 0


def test_a_deadline_ends_requests_wherever_they_stand() -> None:
    there = Instance(blocks=16, seqs=2)
    names = [there.ask(deadline=5.0), there.ask(deadline=5.0, fetch_from=TICKET), there.ask(deadline=5.0)]
    patient = there.ask(range(9), 3, deadline=6.0)
    there.step()
    assert [there.sequence(name).status.name for name in names] == ["DECODING", "TRANSFERRING", "WAITING"]
    there.now = 4.99
    there.step()
    assert len(there.engine.scheduler.running) == 2
    there.now = 5.0
    there.step()
    for name in names:
        assert there.told[name][-1].status == 504
        assert "deadline_seconds" in (there.told[name][-1].error or "")
    there.engine.end_fetch(there.fetches.pop())
    there.finish()
    assert len(there.tokens(patient)) == 3
    assert there.engine.stats.ended == {Status.FAILED: 3, Status.FINISHED: 1}
    assert there.held == 0


def test_every_choice_learns_of_a_deadline() -> None:
    there = Instance()
    name = there.ask(choices=(0, 1), sampling=SAMPLED, deadline=1.0)
    there.step()
    there.now = 1.0
    there.step()
    assert [(update.choice, update.reason) for update in there.told[name][-2:]] == [(0, "error"), (1, "error")]


def test_what_is_aborted_during_a_step_says_nothing_more_and_harms_nobody() -> None:
    there = Instance(blocks=6)
    victim = there.ask(range(9), 9)
    plan, _, _ = there.engine.plan()
    there.engine.abort(victim)
    other = there.ask(PROMPT, 9)  # its blocks are the ones that the step under way writes to
    sampled = there.engine.run(plan)
    assert there.engine.commit(plan, sampled) == []
    there.finish()
    assert there.told[victim] == []
    assert there.tokens(other) == greedy(PROMPT, 9)
    assert there.engine.stats.ended == {Status.ABORTED: 1, Status.FINISHED: 1}
    assert there.held == 0


def test_an_aborted_choice_takes_the_others_with_it_in_every_state() -> None:
    there = Instance(seqs=2)
    name = there.ask(choices=(0, 1, 2), sampling=SAMPLED)
    there.step()
    there.step()
    assert (len(there.engine.scheduler.running), len(there.engine.scheduler.waiting)) == (2, 1)
    there.engine.abort(name)
    there.engine.abort(name)
    assert there.engine.scheduler.running == there.engine.scheduler.waiting == []
    assert there.engine.stats.ended == {Status.ABORTED: 3}
    assert there.held == 0


def test_a_failed_request_is_told_why_once() -> None:
    there = Instance()
    name = there.ask()
    there.step()
    there.engine.fail(name, "broken", 503)
    there.engine.fail(name, "broken again")
    there.hear(there.engine.happened())
    assert there.told[name][1:] == [Update(reason="error", error="broken", status=503)]
    assert there.held == 0


@pytest.mark.parametrize("begun", range(1, 9))
@pytest.mark.parametrize("sampling", [SAMPLED, SamplingParams(max_tokens=9)], ids=["drawn", "greedy"])
def test_a_resumed_answer_goes_on_with_the_same_tokens(begun: int, sampling: SamplingParams) -> None:
    whole = alone(2, sampling)
    there = Instance(budget=5)
    name = there.ask(choices=(2,), sampling=sampling, output=tuple(whole[:begun]), sent=begun)
    there.finish()
    assert there.tokens(name, 2) == whole[begun:]
    assert there.told[name][-1].reason == "length"
    assert "".join(update.text for update in there.told[name]) == "".join(chr(97 + token) for token in whole[begun:])


@pytest.mark.parametrize("fields", [{}, {"keep_for_remote": True}, {"fetch_from": TICKET}], ids=str)
def test_an_answer_that_was_over_elsewhere_ends_at_once(fields: dict) -> None:
    there = Instance()
    name = there.ask(count=3, output=(1, 2, 3), sent=1, **fields)
    assert there.step() == 0
    assert there.told[name] == [Update("cd", reason="length")]
    assert there.engine.stats.ended == {Status.FINISHED: 1}
    assert (len(there.engine.tickets), there.fetches, there.held) == (0, [], 0)


def test_a_reservation_keeps_blocks_until_it_is_used_released_or_expired() -> None:
    there = Instance(blocks=10)
    names = [there.engine.reserve(12) for _ in range(3)]
    assert there.engine.reserve(5) is None
    assert there.held == 9
    assert all(names)
    assert there.engine.release(names[0] or "")
    assert not there.engine.release(names[0] or "")
    assert there.held == 6
    used = there.ask(reservation=names[1], count=4)
    there.step()
    assert len(there.engine.reservations) == 1
    there.now = 30.0
    there.step()
    assert (len(there.engine.reservations), there.engine.reservations.expired) == (0, 1)
    there.finish()
    assert there.tokens(used) == greedy(PROMPT, 4)
    assert there.held == 0


def test_a_reservation_is_one_requests_and_ends_with_it() -> None:
    there = Instance(blocks=10)
    name = there.engine.reserve(12)
    first = there.ask(reservation=name)
    second = there.ask(reservation=name)
    assert [s.reservation is None for s in there.engine.scheduler.waiting] == [False, True]
    assert there.held == 3
    there.engine.abort(first)
    assert there.held == 0
    there.finish()
    assert there.tokens(second) == greedy(PROMPT, 8)


def test_two_reservations_that_are_too_small_do_not_stand_in_each_others_way_for_ever() -> None:
    there = Instance(blocks=9)
    names = [there.engine.reserve(12), there.engine.reserve(12)]
    asked = [there.ask(list(range(25)), 4, reservation=name) for name in names]
    assert there.step() == 0
    there.now = 30.0
    there.finish()
    assert [there.tokens(name) for name in asked] == [greedy(list(range(25)), 4)] * 2
    assert there.held == 0


def test_what_those_need_that_wait_is_not_reserved() -> None:
    there = Instance(blocks=10)
    there.ask()
    assert there.engine.reserve(8 * 4) is None
    spacious = there.engine.reserve(7 * 4)
    assert spacious is not None
    there.ask(reservation=spacious)
    assert there.engine.reserve(4) is None


def arrive(there: Instance, state: HandOff) -> str:
    """A request whose pull ended with this state."""
    name = there.ask(fetch_from=TICKET, choices=(0,))
    there.step()
    fetch = there.fetches.pop()
    there.engine.arrive(fetch, state)
    there.engine.end_fetch(fetch)
    there.step()
    return name


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (HandOff(prompt=9, seed=0, first=[Sampled(11)]), "outside 0..10"),
        (HandOff(prompt=8, seed=0, first=[Sampled(1)]), "a prompt of 8 tokens, this one has 9"),
        (HandOff(prompt=9, seed=0, first=[Sampled(1), Sampled(2)]), "for n=2, the request asks for n=1"),
        (HandOff(prompt=9, seed=0, first=[]), "for n=0, the request asks for n=1"),
    ],
)
def test_what_arrived_for_another_request_fails_this_one(state: HandOff, reason: str) -> None:
    there = Instance()
    name = arrive(there, state)
    assert [update.status for update in there.told[name]] == [502]
    assert reason in (there.told[name][0].error or "")
    assert there.engine.stats.kv_transfers_received == 0
    assert there.held == 0


def test_blocks_that_a_pull_writes_to_stay_its_own_when_its_request_ends() -> None:
    there = Instance(blocks=3)
    name = there.ask(fetch_from=TICKET, count=2)
    there.step()
    fetch = there.fetches.pop()
    there.engine.abort(name)
    assert there.held == 3
    other = there.ask(count=2)
    assert there.step() == 0, "nobody else may write there yet"
    there.engine.arrive(fetch, HandOff(prompt=9, seed=0, first=[Sampled(1)]))
    there.engine.end_fetch(fetch)
    there.finish()
    assert there.told[name] == []
    assert there.tokens(other) == greedy(PROMPT, 2)
    assert there.held == 0


@pytest.mark.parametrize("recompute", [False, True])
def test_a_request_whose_pull_failed_fails_or_is_computed_here(recompute: bool) -> None:
    there = Instance(recompute=recompute)
    name = there.ask(fetch_from=TICKET)
    there.step()
    fetch = there.fetches.pop()
    assert there.engine.awaited() == [TICKET]
    there.engine.miss(fetch, "the wire is cut")
    there.engine.end_fetch(fetch)
    assert there.engine.awaited() == []
    there.finish()
    there.step()
    if recompute:
        assert there.tokens(name) == greedy(PROMPT, 8)
        assert there.engine.stats.prompt_tokens_computed == 9
    else:
        assert there.told[name] == [Update(reason="error", error="the wire is cut", status=502)]
    assert there.engine.stats.kv_transfers_failed == 1
    assert there.held == 0


def test_a_pull_that_failed_after_its_request_ended_changes_nothing() -> None:
    there = Instance(recompute=True)
    name = there.ask(fetch_from=TICKET)
    there.step()
    there.engine.abort(name)
    there.engine.miss(there.fetches[0], "too late")
    there.engine.end_fetch(there.fetches.pop())
    assert there.step() == 0
    assert there.told[name] == []
    assert there.held == 0


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("choices", [1, 3])
def test_apart_equals_together(length: int, choices: int) -> None:
    fields = {"prompt": PROMPT[:length], "choices": tuple(range(choices)), "sampling": SAMPLED}
    both, prefill, decode = (Instance() for _ in range(3))
    together = both.ask(**fields)
    both.finish()
    elsewhere = hand_over(
        prefill, decode, lambda theirs, ours: decode.model.copy(prefill.model, theirs, ours), **fields
    )
    decode.finish()
    for choice in range(choices):
        assert decode.tokens(elsewhere, choice) == both.tokens(together, choice)
    assert prefill.engine.stats.prompt_tokens_computed == length
    assert decode.engine.stats.prompt_tokens_computed <= (length % SIZE or SIZE) * (choices - 1)
    blocks = -(-length // SIZE)
    assert prefill.engine.stats.kv_blocks_sent == decode.engine.stats.kv_blocks_received == blocks
    assert prefill.engine.stats.kv_transfers_sent == decode.engine.stats.kv_transfers_received == 1
    assert prefill.held == decode.held == 0


@pytest.mark.parametrize("choices", [(0,), (0, 1, 2)])
def test_an_unseeded_answer_goes_on_with_the_seed_of_its_first_token(choices: tuple[int, ...]) -> None:
    prefill, decode = Instance(), Instance()
    first = prefill.ask(sampling=SAMPLED, keep_for_remote=True, choices=choices)
    prefill.finish()
    tokens = [Sampled(prefill.tokens(first, choice)[0]) for choice in choices]
    other = SamplingParams(max_tokens=9, temperature=1.0, seed=3)
    name = decode.ask(fetch_from=TICKET, sampling=other, choices=choices)
    decode.step()
    fetch = decode.fetches.pop()
    decode.model.copy(prefill.model, range(40), range(40))
    decode.engine.arrive(fetch, HandOff(prompt=9, seed=SAMPLED.seed, first=tokens))
    decode.engine.end_fetch(fetch)
    decode.finish()
    assert [decode.tokens(name, choice) for choice in choices] == [alone(choice) for choice in choices]


def test_known_blocks_do_not_travel_again() -> None:
    prefill, decode = Instance(), Instance()
    asked = []

    def copy(theirs: Items[int], ours: Items[int]) -> None:
        asked.append((len(theirs), len(ours)))
        decode.model.copy(prefill.model, theirs, ours)

    for tail, reused in (([1], 0), ([2], 8), ([2], 8)):
        prompt = [*PROMPT[:8], *tail * 4]
        name = hand_over(prefill, decode, copy, prompt=prompt)
        decode.finish()
        assert decode.tokens(name) == greedy(prompt, 8)
        assert {update.reused for update in decode.told[name]} == {reused}, "of what was pulled, the prefill knows"
    assert asked == [(3, 3), (1, 1), (0, 0)]
    assert decode.engine.stats.kv_blocks_received == 4


def test_blocks_that_have_arrived_are_known() -> None:
    prefill, decode = Instance(), Instance()
    hand_over(prefill, decode, lambda theirs, ours: decode.model.copy(prefill.model, theirs, ours))
    decode.finish()
    name = decode.ask(count=5)
    decode.finish()
    assert decode.tokens(name) == greedy(PROMPT, 5)
    assert decode.engine.stats.prompt_tokens_computed == 1


@pytest.fixture(scope="module")
def decoder(tiny_model: Path) -> Decoder:
    return load(tiny_model, CPU)


def plain_greedy(decoder: Decoder, prompt: list[int], count: int) -> list[int]:
    """The whole sequence through the decoder for every token."""
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            logits = decoder(torch.tensor([tokens]), CausalContext(1, len(tokens), CPU))
            tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def prompt_of(length: int) -> list[int]:
    return random.Random(length).choices(range(7, 512), k=length)


def real(decoder: Decoder, **limits) -> tuple[Instance, KVCache]:
    cache = KVCache(CacheLayout.of(decoder.config, "float32", 16), 30, CPU)
    return Instance(30, LocalModel(decoder, cache), 16, **limits), cache


@pytest.mark.parametrize("length", [1, 15, 16, 17, 100])
def test_apart_equals_together_equals_a_plain_forward(decoder: Decoder, length: int) -> None:
    prompt = prompt_of(length)
    expected = plain_greedy(decoder, prompt, 20)
    assert len(set(expected)) > 3, "a model that repeats one token would hide mistakes"
    (both, _), (prefill, sent), (decode, received) = (real(decoder) for _ in range(3))
    together = both.ask(prompt, 20)
    both.finish()
    assert both.tokens(together) == expected

    def copy(theirs: Items[int], ours: Items[int]) -> None:
        received.blocks[ours] = sent.blocks[theirs]

    elsewhere = hand_over(prefill, decode, copy, prompt=prompt, count=20)
    decode.finish()
    assert decode.tokens(elsewhere) == expected
    assert decode.engine.stats.prompt_tokens_computed == 0


@pytest.mark.parametrize("budget", [5, 64])
def test_a_decoder_batched_shared_and_preempted_equals_a_plain_forward(decoder: Decoder, budget: int) -> None:
    prompts = [prompt_of(100)[:length] for length in (40, 33, 16, 75, 100, 1)]
    there, _ = real(decoder, budget=budget, seqs=4)
    there.engine.reserve(20 * 16)  # so that 10 blocks have to be enough
    names = [there.ask(prompt, 30) for prompt in prompts]
    there.finish()
    assert [there.tokens(name) for name in names] == [plain_greedy(decoder, prompt, 30) for prompt in prompts]
    assert there.engine.scheduler.preemptions > 0
    assert there.engine.scheduler.prefix_hits > 0
