"""`Share`: the samples of a batch that are this rank's, cut into micro-batches.

A batch of 8 samples on 3 ranks, in micro-batches of 2:

    rank 0    0 1 │ blank
    rank 1    2 3 │ 4
    rank 2    5 6 │ 7
"""

from __future__ import annotations

import math

from tandem.errors import DataError
from tandem.parallel.world import World
from tandem.training.data.batch import Batch, Batches


class Share:
    """What this rank has of each batch; the ranks' numbers of samples differ by one at most.

    Args:
        batches: The same on all ranks.
        world: The ranks.
        micro_batch: Samples that are computed at once.
        vocab_size: Tokens that the model knows.
    """

    def __init__(self, batches: Batches, world: World, micro_batch: int, vocab_size: int) -> None:
        self._batches = batches
        self._world = world
        self._micro_batch = micro_batch
        self._vocab_size = vocab_size

    def at(self, position: int, count: int) -> Batch:
        """This rank's of `count` samples from `position` on, on its device; a blank one where it has none of them.

        Raises:
            DataError: A sample holds a token that the model does not know.
        """
        rank, ranks = self._world.rank, self._world.ranks
        begin, end = count * rank // ranks, count * (rank + 1) // ranks
        if begin == end:
            return self._batches.at(position, 1).numbered(position).blank().to(self._world.device)
        batch = self._batches.at(position + begin, end - begin).numbered(position + begin)
        self._require_known(batch, position + begin)
        return batch.to(self._world.device)

    def micro_batches(self, batch: Batch, count: int) -> list[Batch]:
        """The micro-batches of this rank's part of `count` samples.

        As many on every rank, because ranks sum their gradients after each.
        """
        parts = list(batch.split(self._micro_batch))
        most = math.ceil(math.ceil(count / self._world.ranks) / self._micro_batch)
        return parts + [batch.blank()] * (most - len(parts))

    def _require_known(self, batch: Batch, position: int) -> None:
        """Data that was prepared elsewhere may have been with another tokenizer."""
        largest = int(batch.tokens.max())
        if largest >= self._vocab_size:
            raise DataError(
                f"samples {position} to {position + len(batch.tokens) - 1} hold token id {largest}, and the model has "
                f"{self._vocab_size} tokens; prepare them with the model's tokenizer"
            )
