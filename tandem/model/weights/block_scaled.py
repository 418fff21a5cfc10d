"""Block-quantised matrices: one scale for each block of numbers (DeepSeek-V3, 2024, section 3.3)."""

from __future__ import annotations

from torch import Tensor

from tandem.model.weights.fit import Block


def dequantise(weight: Tensor, scales: Tensor, first: int, block: Block) -> Tensor:
    """Consecutive rows of a quantised matrix as fp32.

    Args:
        weight: The rows, [R, C].
        scales: The factors of all blocks that these rows lie in, fp32 [ceil, ceil(C / block columns)].
        first: How many rows of the first of these blocks come before them.
        block: Rows and columns of a block; those at the edges may be smaller.
    """
    height, width = block
    wide = weight.float()
    for index, factors in enumerate(scales):
        start = max(index * height - first, 0)
        # In place and row block by row block, so that nothing of the matrix's size is made besides the result.
        wide[start : (index + 1) * height - first] *= factors.repeat_interleave(width)[: wide.shape[1]]
    return wide
