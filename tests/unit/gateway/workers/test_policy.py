"""Who is chosen, by each policy."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.gateway.processes.board import Board
from tandem.gateway.request.body import ClientBody
from tandem.gateway.request.demand import BLOCK_BYTES, BYTES_PER_TOKEN, Demand
from tandem.gateway.wire.worker import Worker
from tandem.gateway.workers.policy import (
    COMPARED,
    POLICIES,
    LeastLoaded,
    PolicyName,
    PowerOfTwo,
    PrefixAware,
    RoundRobin,
)
from tandem.gateway.workers.vitals import Vitals

SHORT = Demand(ClientBody.decode(b'{"prompt": "x"}'))


def candidates(*tokens: int) -> list[Vitals]:
    workers = [Worker(name=f"decode-{i}", url=f"http://d{i}", role="decode") for i in range(len(tokens))]
    made = [Vitals(worker, Board()) for worker in workers]
    for vitals, carried in zip(made, tokens, strict=True):
        vitals.load.begin(carried)
    return made


def prompt(text: str) -> Demand:
    return Demand(ClientBody.decode(b'{"prompt": "%s"}' % text.encode()))


def names(chosen: Sequence[Vitals]) -> list[str]:
    return [one.worker.name for one in chosen]


def test_one_after_the_other() -> None:
    policy, three = RoundRobin(), candidates(9, 0, 5)
    assert names([policy.choose(three, SHORT) for _ in range(4)]) == ["decode-0", "decode-1", "decode-2", "decode-0"]


def test_the_least_loaded_and_of_equals_who_has_waited() -> None:
    policy, three = LeastLoaded(), candidates(5, 2, 2)
    assert names([policy.choose(three, SHORT) for _ in range(3)]) == ["decode-1", "decode-2", "decode-1"]
    three[0].load.end(4)
    assert policy.choose(three, SHORT) is three[0]


def test_of_very_many_a_sample_is_compared() -> None:
    policy, many = LeastLoaded(), candidates(*range(1, 8 * COMPARED + 1))
    assert {policy.choose(many, SHORT).load.tokens for _ in range(64)} != {1}
    assert max(policy.choose(many, SHORT).load.tokens for _ in range(64)) < 7 * COMPARED


def test_of_two_by_chance_the_less_loaded() -> None:
    random.seed(1)
    policy, five = PowerOfTwo(), candidates(5, 4, 3, 2, 1)
    drawn = Counter(names([policy.choose(five, SHORT) for _ in range(600)]))
    assert drawn["decode-0"] == 0  # whoever is drawn beside it carries less
    assert drawn["decode-4"] > drawn["decode-3"] > drawn["decode-2"] > drawn["decode-1"] > 0


def test_a_prompt_goes_where_its_beginning_went() -> None:
    policy, three = PrefixAware(), candidates(0, 0, 0)
    first = policy.choose(three, prompt("a" * 4000))
    policy.sent(prompt("a" * 4000), first.worker)
    for _ in range(3):
        assert policy.choose(three, prompt("a" * 4000 + "b" * 1000)) is first
    assert policy.choose(three, prompt("b" * 4000)) is not first
    policy.forget(first.worker)
    assert policy.choose(three, prompt("a" * 4000)) is not first


def test_of_very_many_who_know_a_beginning_the_one_that_knows_most_is_found() -> None:
    policy, many = PrefixAware(), candidates(*[0] * 16 * COMPARED)
    system = "s" * 2 * BLOCK_BYTES
    for one in many:
        policy.sent(prompt(system), one.worker)
    conversation = prompt(system + "c" * 4 * BLOCK_BYTES)
    policy.sent(conversation, many[-5].worker)
    assert {policy.choose(many, conversation).worker.name for _ in range(16)} == {many[-5].worker.name}


def test_but_not_into_a_queue_longer_than_what_it_saves() -> None:
    policy, two = PrefixAware(), candidates(0, 0)
    policy.sent(prompt("a" * 4000), two[0].worker)
    saved = policy.cached_tokens(prompt("a" * 4000))[two[0].worker]
    assert saved == 4000 // BLOCK_BYTES * BLOCK_BYTES // BYTES_PER_TOKEN
    two[0].load.begin(saved - 1)
    assert policy.choose(two, prompt("a" * 4000)) is two[0]
    two[0].load.begin(2)
    assert policy.choose(two, prompt("a" * 4000)) is two[1]


@pytest.mark.parametrize("name", POLICIES)
@given(loads=st.lists(st.integers(0, 100), min_size=1, max_size=70))
def test_somebody_is_chosen_whoever_is_there(name: PolicyName, loads: list[int]) -> None:
    there = candidates(*loads)
    assert POLICIES[name]().choose(there, SHORT) in there
