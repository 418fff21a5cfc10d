"""Philox4x32-10: random numbers that are a function of a key and a counter, in integer operations of any device.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). The words are held in
int64, because torch has no full arithmetic on unsigned 32 bits; no value leaves its range.

Shapes: B rows, N groups of four tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

ROUNDS: Final = 10
MASK: Final = 0xFFFFFFFF
MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
WEYL: Final = (0x9E3779B9, 0xBB67AE85)


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Four random words of 32 bits for every counter.

    Args:
        counter: [4, ...], int64, words of 0..2^32-1.
        key: [2, ...], likewise; broadcast against two words of the counter.

    Returns:
        [4, ...], the words in the published order.
    """
    multipliers, weyl = (_words(pair, counter) for pair in (MULTIPLIERS, WEYL))
    # Words 0 and 2 are multiplied, words 1 and 3 are not, so each pair is one tensor.
    multiplied, others = counter[0::2], counter[1::2]
    for _ in range(ROUNDS):
        high, low = _product(multiplied, multipliers)
        multiplied, others = high.flip(0) ^ others ^ key, low.flip(0)
        key = (key + weyl) & MASK
    return torch.stack([multiplied, others], 1).flatten(0, 1)


def gumbel(
    seeds: Sequence[int], choices: Sequence[int], indices: Sequence[int], vocabulary: int, device: torch.device
) -> Tensor:
    """Gumbel noise, a function of the row's seed, choice and output index and of the token, and of nothing else.

    Token v has word v % 4 of the counter (v // 4, index, choice, 0) under the key that the seed's 64 bits are.

    Args:
        seeds: One of 64 bits for each row.
        choices: Of 32 bits.
        indices: Of 32 bits.
        vocabulary: V.
        device: Where the noise is made.

    Returns:
        [B, V], float64, finite.
    """
    seed, choice, index = (torch.tensor(column, device=device)[:, None] for column in (seeds, choices, indices))
    group = torch.arange(-(-vocabulary // 4), device=device)[None]
    counter = torch.stack([word.expand(len(seed), group.shape[1]) for word in (group, index, choice, 0 * seed)])
    words = philox(counter, torch.stack([seed & MASK, (seed >> 32) & MASK]))
    uniform = (words.movedim(0, -1).flatten(1)[:, :vocabulary].double() + 0.5) * 2.0**-32
    return -(-uniform.log()).log()


def _words(pair: tuple[int, int], like: Tensor) -> Tensor:
    """[2, 1, ...], beside a counter."""
    return torch.tensor(pair, device=like.device).view(2, *(1 for _ in like.shape[1:]))


def _product(words: Tensor, multipliers: Tensor) -> tuple[Tensor, Tensor]:
    """Upper and lower word of products of two words.

    A whole product has 64 bits, one more than int64 holds. Each multiplier is above 2^31, so 2^32 less than it is a
    negative number small enough; the words themselves, added to the upper half, make up for it.
    """
    products = words * (multipliers - (MASK + 1))
    return (products >> 32) + words, products & MASK
