"""Which worker was sent which beginnings of prompts, so that the next one with the same goes where its blocks are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from tandem.gateway.wire.worker import Worker

KNOWN: Final = 2**16
"""Blocks that are remembered; those that were not sent for the longest time are forgotten first."""


class Prefixes:
    """Workers by block, the most recently sent blocks last.

    It is what was sent and not what is cached: an instance that is short of room throws blocks away and tells nobody.
    """

    def __init__(self, known: int = KNOWN) -> None:
        self._most = known
        self._holders: OrderedDict[int, set[Worker]] = OrderedDict()

    def matches(self, blocks: Sequence[int]) -> dict[Worker, int]:
        """How many of a prompt's first blocks each worker was sent; only those who were sent any."""
        found: dict[Worker, int] = {}
        holders = self._holders.get(blocks[0], set()) if blocks else set()
        for count, block in enumerate(blocks):
            further = holders & self._holders.get(block, set())
            if len(further) < len(holders):
                found |= dict.fromkeys(holders - further, count)
                holders = further
            if not holders:
                break
        return found | dict.fromkeys(holders, len(blocks))

    def sent(self, blocks: Sequence[int], worker: Worker) -> None:
        """Remember that a worker was sent these."""
        for block in reversed(blocks):  # so that a prompt's beginning is forgotten after its end
            self._holders.setdefault(block, set()).add(worker)
            self._holders.move_to_end(block)
        while len(self._holders) > self._most:
            self._holders.popitem(last=False)

    def forget(self, worker: Worker) -> None:
        """A worker has lost its cache, or is gone."""
        for block, holders in list(self._holders.items()):
            holders.discard(worker)
            if not holders:
                del self._holders[block]
