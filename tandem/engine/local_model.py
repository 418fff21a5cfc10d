"""The model of one process: a decoder, whole or one rank's part, over one cache."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from tandem.engine.step import Step, forward
from tandem.errors import ProcessError
from tandem.kv.cache import KVCache
from tandem.model.decoder import Decoder
from tandem.parallel.device import synchronise


class LocalModel:
    """Computes steps in this process.

    Args:
        decoder: What to compute.
        cache: Where its keys and values lie.
    """

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        self._decoder = decoder
        self._cache = cache

    @property
    def vocab_size(self) -> int:
        """Number of token ids the model knows."""
        return self._decoder.config.vocab_size

    def logits(self, step: Step) -> Tensor | None:
        """[rows, V], or None where no row is wanted; then keys and values lie in the cache when it returns."""
        logits = forward(self._decoder, self._cache, step)
        if logits is None:  # nobody will wait for logits, and the blocks may be read by others right away
            synchronise(self._cache.device)
        return logits

    def watch(self, on_death: Callable[[ProcessError], object]) -> None:
        """Nothing is called: there is no other process."""

    def close(self) -> None:
        """There is nothing to let go of."""
