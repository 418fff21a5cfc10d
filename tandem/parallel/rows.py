"""The rows of a sharded tensor: which of them a rank holds, and how it keeps its own of a whole one.

FSDP2 cuts the first dimension as `torch.chunk` does, in equal parts but for the last ones:

    7 rows over 3 ranks    rank 0: 0 1 2    rank 1: 3 4 5    rank 2: 6

A tensor that is no `DTensor` is taken to be whole on every rank, with the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Own(NamedTuple):
    """What a rank holds of a tensor."""

    tensor: Tensor
    """Its own memory, as many rows as `rows` has."""
    rows: range


def own_part(tensor: Tensor) -> Own:
    """This rank's rows, and which they are; of a tensor that is not sharded all."""
    mesh = getattr(tensor, "device_mesh", None)  # a DTensor, whose class takes a second to import
    if mesh is None:
        return Own(tensor.detach(), range(len(tensor)))
    rows = rows_of(len(tensor), mesh.get_local_rank(), mesh.size())
    local: Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]
    assert len(local) == len(rows), "FSDP cuts as torch.chunk does"
    return Own(local, rows)


def rows_of(count: int, rank: int, ranks: int) -> range:
    """The rows of `count` that a rank holds; none for the last ranks where there are too few."""
    step = -(-count // ranks)
    return range(min(rank * step, count), min((rank + 1) * step, count))


@torch.no_grad()
def keep_own(tensor: Tensor, whole: Tensor) -> None:
    """Copy this rank's rows of `whole` into a tensor of its shape."""
    own = own_part(tensor)
    own.tensor.copy_(whole[own.rows.start : own.rows.stop])
