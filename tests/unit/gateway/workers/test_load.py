"""The ledger of what a worker carries."""

from __future__ import annotations

import math

import pytest

from tandem.gateway.processes.board import Board
from tandem.gateway.workers.load import Load


@pytest.mark.parametrize("tokens", [-1, 10**400, -(10**400), -1.7e308, math.inf, math.nan])
def test_what_cannot_be_is_not_counted_at_all(tokens: int) -> None:
    load = Load(Board(), "http://d")
    with pytest.raises(AssertionError):
        load.begin(tokens)
    assert (load.requests, load.tokens) == (0, 0)
    with load.carrying(7):
        assert (load.requests, load.tokens) == (1, 7)
    assert (load.requests, load.tokens) == (0, 0)
