"""The order in which samples are visited: a function of the seed and the position, with nothing to save or restore."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray


class SampleOrder:
    """Every sample once per epoch, each epoch in an order of its own.

    Args:
        seed: Non-negative; another seed is another order.
        samples: Number of samples, at least 1.
    """

    def __init__(self, seed: int, samples: int) -> None:
        self._samples = samples
        # Only a memory of a pure function: the epochs around the position last asked for.
        self._epoch = functools.lru_cache(maxsize=2)(functools.partial(permutation, seed, samples))

    def at(self, position: int) -> int:
        """The sample at `position` of an endless run."""
        epoch, place = divmod(position, self._samples)
        return int(self._epoch(epoch)[place])


def permutation(seed: int, samples: int, epoch: int) -> NDArray[np.int64]:
    """The order of one epoch, int64 [samples].

    Sorting the raw Philox words, and not `Generator.permutation`, because NumPy promises to keep the words the same in
    all its versions.
    """
    words = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(samples)
    return np.argsort(words, kind="stable")
