"""Who was sent which beginnings."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tandem.gateway.request.body import ClientBody
from tandem.gateway.request.demand import BLOCK_BYTES, HEADROOM, Demand
from tandem.gateway.wire.worker import Worker
from tandem.gateway.workers.prefixes import Prefixes

WORKERS = [Worker(name=f"decode-{i}", url=f"http://d{i}", role="decode") for i in range(3)]


def common(one: list[int], other: list[int]) -> int:
    same = [a == b for a, b in zip(one, other, strict=False)]
    return [*same, False].index(False)


def chained(blocks: list[int]) -> list[int]:
    """As `Demand.blocks` makes them: each stands for all before it."""
    return [hash(tuple(blocks[: i + 1])) for i in range(len(blocks))]


@given(
    sent=st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=5), st.sampled_from(WORKERS)), max_size=12),
    asked=st.lists(st.integers(0, 2), max_size=5),
    gone=st.sampled_from(WORKERS),
)
def test_matches_are_the_longest_common_beginnings(
    sent: list[tuple[list[int], Worker]], asked: list[int], gone: Worker
) -> None:
    known = Prefixes()
    for blocks, worker in sent:
        known.sent(chained(blocks), worker)
    for worker in WORKERS:
        longest = max((common(asked, blocks) for blocks, to in sent if to is worker), default=0)
        assert known.matches(chained(asked)).get(worker, 0) == longest
    known.forget(gone)
    assert gone not in known.matches(chained(asked))


def test_what_was_not_sent_for_longest_is_forgotten_and_ends_before_beginnings() -> None:
    known = Prefixes(known=4)
    known.sent([1, 2, 3], WORKERS[0])
    known.sent([4, 5], WORKERS[1])
    assert known.matches([1, 2, 3]) == {WORKERS[0]: 2}
    assert known.matches([4, 5]) == {WORKERS[1]: 2}


def asked(body: str) -> Demand:
    return Demand(ClientBody.decode(body.encode()))


def test_a_demand_is_counted_roughly_or_exactly() -> None:
    assert asked('{"prompt": "%s"}' % ("word" * 100)).prompt_tokens == 101
    assert asked('{"prompt": [1, 2, 3]}').prompt_tokens == 3
    assert asked('{"prompt": "x", "max_tokens": 7}').answer_tokens == 7
    assert asked('{"prompt": "x", "max_tokens": 70000}').answer_tokens == HEADROOM
    assert asked('{"prompt": "x"}').tokens == 1 + HEADROOM


def test_blocks_stand_for_everything_before_them_and_for_whose_cache_it_is() -> None:
    one, other = "a" * BLOCK_BYTES * 3, "a" * BLOCK_BYTES * 2 + "b" * BLOCK_BYTES
    blocks = asked(f'{{"prompt": "{one}"}}').blocks
    assert len(blocks) == 3
    assert common(list(blocks), list(asked(f'{{"prompt": "{other}"}}').blocks)) == 2
    for field in ('"model": "m"', '"cache_salt": "s"', '"tools": [1]'):
        assert not set(blocks) & set(asked(f'{{"prompt": "{one}", {field}}}').blocks)
