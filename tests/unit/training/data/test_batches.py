from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.errors import DataError
from tandem.training.data.batches import TokenBatches
from tandem.training.data.order import SampleOrder, permutation


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 300), st.integers(1, 20), st.integers(0, 2**32), st.integers(0, 3))
def test_an_epoch_visits_every_token_range_once(tokens: int, length: int, seed: int, epoch: int) -> None:
    if tokens <= length:
        return
    batches = TokenBatches(np.arange(tokens, dtype=np.uint16), length, seed)
    batch = batches.at(epoch * batches.samples, batches.samples)
    assert batch.targets.flatten().sort().values.tolist() == list(range(1, batches.samples * length + 1))
    assert torch.equal(batch.tokens + 1, batch.targets)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 500), st.integers(1, 8))
def test_batches_depend_on_seed_and_position_alone(seed: int, position: int, count: int) -> None:
    tokens = np.arange(101, dtype=np.uint16)
    batch = TokenBatches(tokens, 10, seed).at(position, count)
    other = TokenBatches(tokens, 10, seed)
    other.at(position + 1000, 1)
    rows = torch.cat([other.at(position + row, 1).tokens for row in reversed(range(count))]).flip(0)
    assert torch.equal(batch.tokens, rows)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [permutation(seed, 64, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert all(sorted(order) == list(range(64)) for order in orders)
    order = SampleOrder(0, 64)
    assert [order.at(position) for position in range(128)] == orders[0] + orders[1]


def test_order_is_the_same_on_every_machine_and_numpy() -> None:
    assert permutation(7, 8, 0).tolist() == [4, 1, 6, 3, 2, 7, 5, 0]


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(DataError, match="8 tokens make no sample of 8"):
        TokenBatches(np.arange(8, dtype=np.uint16), 8, 0)
