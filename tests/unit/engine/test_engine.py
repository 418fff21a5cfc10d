"""The engine without HTTP: batched equals alone, apart equals together equals a plain forward, no block is lost."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tandem.engine.engine import Engine, EngineIdentity
from tandem.engine.runner import Runner
from tandem.engine.sampling import SamplingParams
from tandem.engine.scheduler import SchedulerLimits
from tandem.engine.sequence import Request, Sequence, Status
from tandem.errors import RequestError, TransferError
from tandem.kv.blocks import BlockPool
from tandem.kv.cache import CacheLayout, KVCache
from tandem.kv.transfer import Granted, Pull
from tandem.model.context import CausalContext
from tandem.model.decoder import Decoder
from tandem.model.folder import load
from tandem.protocol.kv import KVTransferParams
from tandem.text.tokenizer import Tokenizer

BLOCK = 16
CPU = torch.device("cpu")
IDENTITY = EngineIdentity(engine_id="e", digest="d", host="127.0.0.1", port=1)


@pytest.fixture(scope="module")
def decoder(tiny_model: Path) -> Decoder:
    return load(tiny_model, CPU)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return Tokenizer.from_folder(tiny_model)


def make_engine(decoder: Decoder, tokenizer: Tokenizer, blocks: int = 200, **limits: int) -> Engine:
    layout = CacheLayout.of(decoder.config, "float32", BLOCK)
    cache, pool = KVCache(layout, blocks, CPU), BlockPool(blocks, BLOCK)
    return Engine(Runner(decoder, cache), cache, pool, tokenizer, SchedulerLimits(**limits), IDENTITY, 30.0)


def request(prompt: list[int], count: int = 20, **fields: object) -> Request:
    sampling = fields.pop("sampling", None) or SamplingParams(max_tokens=count)
    return Request(id="r", prompt=prompt, sampling=sampling, **fields)  # type: ignore[arg-type]


def step(engine: Engine) -> list[Sequence]:
    """One step; the sequences whose blocks should be fetched."""
    plan, _ = engine.plan()
    if plan.works:
        engine.commit(plan, engine.run(plan))
    return plan.fetches


def finish(engine: Engine, *sequences: Sequence) -> None:
    for _ in range(2000):
        if all(sequence.ended for sequence in sequences):
            return
        step(engine)
    raise AssertionError("the engine does not finish")


def output(sequence: Sequence) -> list[int]:
    return sequence.token_ids[len(sequence.request.prompt) :]


def plain_greedy(decoder: Decoder, prompt: list[int], count: int) -> list[int]:
    """The reference: the whole sequence through the decoder for every token."""
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            logits = decoder(torch.tensor([tokens]), CausalContext(1, len(tokens), CPU))
            tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return random.Random(f"{length} {seed}").choices(range(7, 512), k=length)


def hand_over(prefill: Engine, decode: Engine, prompt: list[int], **fields: object) -> Sequence:
    """A request's way apart, without sockets: prefill, ticket, pull, decode."""
    first = prefill.submit(request(prompt, keep_for_remote=True, **fields))
    updates = []
    while not first.ended:
        plan, _ = prefill.plan()
        updates += prefill.commit(plan, prefill.run(plan))
    ticket = updates[-1][1].ticket
    assert ticket is not None
    second = decode.submit(request(prompt, fetch_from=ticket, **fields))
    assert step(decode) == [second]
    pull = Pull(ticket.remote_request_id or "", ticket.remote_engine_id or "", "d")
    granted, data = prefill.grant(pull)
    decode.arrive(second, granted, data)
    prefill.settle(pull, granted, received=True)
    finish(decode, second)
    return second


@pytest.mark.parametrize("length", [1, 5, 15, 16, 17, 32, 100])
def test_apart_equals_together_equals_plain_forward(decoder: Decoder, tokenizer: Tokenizer, length: int) -> None:
    prompt = prompt_of(length)
    expected = plain_greedy(decoder, prompt, 20)
    assert len(set(expected)) > 3, "a model that repeats one token would hide mistakes"
    both, prefill, decode = (make_engine(decoder, tokenizer) for _ in range(3))
    together = both.submit(request(prompt))
    finish(both, together)
    assert output(together) == expected
    apart = hand_over(prefill, decode, prompt)
    assert output(apart) == expected
    assert decode.stats.prompt_tokens_computed == 0
    assert prefill.stats.prompt_tokens_computed == both.stats.prompt_tokens_computed == length
    per_token = 3 * 2 * 2 * 16 * 4
    assert prefill.stats.kv_bytes_sent == decode.stats.kv_bytes_received == length * per_token
    for engine in (both, prefill, decode):
        assert engine.pool.free == engine.pool.count


def test_seeded_sampling_is_the_same_apart(decoder: Decoder, tokenizer: Tokenizer) -> None:
    sampling = SamplingParams(temperature=0.8, top_p=0.95, seed=11, max_tokens=30)
    both, prefill, decode = (make_engine(decoder, tokenizer) for _ in range(3))
    together = both.submit(request(prompt_of(20), sampling=sampling))
    finish(both, together)
    apart = hand_over(prefill, decode, prompt_of(20), sampling=sampling)
    assert output(apart) == output(together)


@pytest.mark.parametrize("budget", [1, 7, 64, 1000])
def test_batched_and_chunked_equal_alone(decoder: Decoder, tokenizer: Tokenizer, budget: int) -> None:
    prompts = [prompt_of(length) for length in (3, 40, 16, 75, 1)]
    engine = make_engine(decoder, tokenizer, max_num_batched_tokens=budget, max_num_seqs=3)
    sequences = [engine.submit(request(prompt, 10)) for prompt in prompts]
    finish(engine, *sequences)
    assert [output(s) for s in sequences] == [plain_greedy(decoder, prompt, 10) for prompt in prompts]
    assert engine.stats.prompt_tokens_computed == sum(map(len, prompts))


def test_requests_wait_for_blocks(decoder: Decoder, tokenizer: Tokenizer) -> None:
    engine = make_engine(decoder, tokenizer, blocks=4)
    sequences = [engine.submit(request(prompt_of(30, seed), 10)) for seed in range(4)]
    step(engine)
    assert [s.status for s in sequences] == [Status.DECODING, Status.WAITING, Status.WAITING, Status.WAITING]
    finish(engine, *sequences)
    assert engine.pool.free == 4


def test_a_request_that_never_fits_is_refused(decoder: Decoder, tokenizer: Tokenizer) -> None:
    engine = make_engine(decoder, tokenizer, blocks=4)
    with pytest.raises(RequestError, match=r"needs 5 KV blocks and this instance has 4.*--kv-cache-gib"):
        engine.submit(request(prompt_of(60), 6))


def test_pulls_of_others_are_refused(decoder: Decoder, tokenizer: Tokenizer) -> None:
    engine = make_engine(decoder, tokenizer)
    for pull, reason in [
        (Pull("t", "other", "d"), "restarted"),
        (Pull("t", "e", "other"), "differ"),
        (Pull("forged", "e", "d"), "unknown"),
    ]:
        with pytest.raises(TransferError, match=reason):
            engine.grant(pull)


def test_an_unseeded_answer_goes_on_with_the_seed_of_its_first_token(decoder: Decoder, tokenizer: Tokenizer) -> None:
    prompt, here, there = (
        prompt_of(20),
        SamplingParams(temperature=0.9, seed=1),
        SamplingParams(temperature=0.9, seed=2),
    )
    both, prefill, decode = (make_engine(decoder, tokenizer) for _ in range(3))
    together = both.submit(request(prompt, sampling=here))
    finish(both, together)
    first = prefill.submit(request(prompt, sampling=here, keep_for_remote=True))
    plan, _ = prefill.plan()
    ((_, update),) = prefill.commit(plan, prefill.run(plan))
    assert first.ended
    assert update.ticket is not None
    second = decode.submit(request(prompt, sampling=there, fetch_from=update.ticket))
    step(decode)
    granted, data = prefill.grant(Pull(update.ticket.remote_request_id or "", "e", "d"))
    decode.arrive(second, granted, data)
    finish(decode, second)
    assert output(second) == output(together)


def test_a_first_token_outside_the_vocabulary_fails_the_request(decoder: Decoder, tokenizer: Tokenizer) -> None:
    engine = make_engine(decoder, tokenizer)
    ticket = KVTransferParams(do_remote_prefill=True)
    victim = engine.submit(request([7, 8, 9], fetch_from=ticket))
    step(engine)
    size = engine.kv_bytes(3)
    engine.arrive(victim, Granted([7, 8, 9, 512], 0, size), torch.zeros(size, dtype=torch.uint8))
    _, ((_, failed),) = engine.plan()
    assert failed.error is not None
    assert engine.pool.free == engine.pool.count


def test_a_pull_that_cannot_be_copied_leaves_its_lease_open(decoder: Decoder, tokenizer: Tokenizer) -> None:
    prefill = make_engine(decoder, tokenizer)
    prefill.submit(request([10, 11, 12], keep_for_remote=True))
    plan, _ = prefill.plan()
    ((_, update),) = prefill.commit(plan, prefill.run(plan))
    assert update.ticket is not None
    pull = Pull(update.ticket.remote_request_id or "", "e", "d")
    export = prefill._cache.export_tokens

    def fail(*_: object) -> torch.Tensor:
        raise RuntimeError("no memory")

    prefill._cache.export_tokens = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        prefill.grant(pull)
    prefill._cache.export_tokens = export  # type: ignore[method-assign]
    prefill.grant(pull)


def test_a_ticket_of_another_prompt_fails_the_request(decoder: Decoder, tokenizer: Tokenizer) -> None:
    engine = make_engine(decoder, tokenizer)
    prefill = make_engine(decoder, tokenizer)
    donor = prefill.submit(request([10, 11, 12], keep_for_remote=True))
    plan, _ = prefill.plan()
    ((_, update),) = prefill.commit(plan, prefill.run(plan))
    assert donor.ended
    assert update.ticket is not None
    victim = engine.submit(request([7, 8, 9], fetch_from=update.ticket))
    step(engine)
    granted, data = prefill.grant(Pull(update.ticket.remote_request_id or "", "e", "d"))
    engine.arrive(victim, granted, data)
    _, ((_, failed),) = engine.plan()
    assert failed.error is not None
    assert "another prompt" in failed.error
    assert victim.status is Status.FAILED
    assert engine.pool.free == engine.pool.count


class Life(RuleBasedStateMachine):
    """Random submits, steps, aborts, pulls, broken pulls and expiries on one engine; no block is ever lost."""

    decoder: Decoder
    tokenizer: Tokenizer

    def __init__(self) -> None:
        super().__init__()
        self.engine = make_engine(self.decoder, self.tokenizer, blocks=12, max_num_seqs=4, max_num_batched_tokens=24)
        self.now = 0.0
        self.engine.leases._clock = lambda: self.now
        self.sequences: list[Sequence] = []
        self.tickets: list[str] = []
        self.fetching: list[Sequence] = []
        self.plan = None

    @rule(length=st.integers(1, 60), count=st.integers(1, 20), kind=st.sampled_from(["whole", "keep", "fetch"]))
    def submit(self, length: int, count: int, kind: str) -> None:
        ticket = KVTransferParams(do_remote_prefill=True) if kind == "fetch" else None
        asked = request(prompt_of(length), count, keep_for_remote=kind == "keep", fetch_from=ticket)
        self.sequences.append(self.engine.submit(asked))

    @rule()
    @precondition(lambda self: self.plan is None)
    def begin_step(self) -> None:
        self.plan, _ = self.engine.plan()
        self.fetching += self.plan.fetches

    @rule()
    @precondition(lambda self: self.plan is not None)
    def end_step(self) -> None:
        plan, self.plan = self.plan, None
        if plan.works:
            updates = self.engine.commit(plan, self.engine.run(plan))
            self.tickets += [u.ticket.remote_request_id for _, u in updates if u.ticket is not None]

    @rule(pick=st.integers(0, 99))
    @precondition(lambda self: self.sequences)
    def abort(self, pick: int) -> None:
        self.engine.abort(self.sequences[pick % len(self.sequences)])

    @rule(pick=st.integers(0, 99), fails=st.booleans())
    @precondition(lambda self: self.fetching)
    def fetched(self, pick: int, fails: bool) -> None:
        sequence = self.fetching.pop(pick % len(self.fetching))
        if fails:
            self.engine.fail(sequence, "the pull broke off")
            return
        prompt = sequence.request.prompt
        size = len(prompt) * self.engine._cache.layout.bytes_per_token
        self.engine.arrive(sequence, Granted([*prompt, 9], 0, size), torch.zeros(size, dtype=torch.uint8))

    @rule(pick=st.integers(0, 99), received=st.booleans())
    @precondition(lambda self: self.tickets)
    def pull(self, pick: int, received: bool) -> None:
        asked = Pull(self.tickets[pick % len(self.tickets)], "e", "d")
        try:
            granted, data = self.engine.grant(asked)
        except TransferError:
            return
        assert data.numel() == granted.size
        self.engine.settle(asked, granted, received=received)

    @rule(seconds=st.floats(0, 40))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def every_block_has_its_holders(self) -> None:
        engine = self.engine
        held = [block for s in engine.scheduler.running for block in s.blocks]
        held += [block for lease in engine.leases._leases.values() for block in lease.blocks]
        assert len(held) == len(set(held)), "a block is owned twice"
        assert engine.pool.free == engine.pool.count - len(held), "a block leaked"
        assert all(not s.blocks for s in self.sequences if s.ended or s.status is Status.WAITING)


def test_life_of_an_engine(decoder: Decoder, tokenizer: Tokenizer) -> None:
    Life.decoder, Life.tokenizer = decoder, tokenizer
    run_state_machine_as_test(Life, settings=settings(max_examples=40, stateful_step_count=40, deadline=None))
