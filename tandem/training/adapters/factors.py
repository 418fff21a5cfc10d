"""Factors between PEFT's tensors and ours.

PEFT has one pair for each matrix of a checkpoint, and some checkpoints fuse matrices that are several of ours:

    reading    A [r, I] is shared by all parts, B [O, r] is cut into their rows; blocks that we wrote come apart again
    writing    parts with one and the same A: that A, and B one below the other
               parts with their own: A one below the other, B block by block, so the rank is the sum; equal, not near

transformers 5 stacks a mixture's experts, and PEFT has for such a stack A [X r, I] and B [O, X r], the latter with the
expert changing fastest (`ParamWrapper.get_delta_weight`). It reads the separate experts of transformers 4 as well,
which are what is written here.

Shapes: I in, O out, r rank, X experts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tandem.training.adapters.layers import Strength


@dataclass(frozen=True)
class Factors:
    """What one matrix gets: A [r, I], B [O, r]; or a stack: [X, r, I], [X, O, r]."""

    a: Tensor
    b: Tensor
    strength: Strength


def taken_apart(whole: Factors, rows: Sequence[int]) -> list[Factors | None]:
    """The factors of each part of a fused matrix, or stack of them; None for parts that nothing is added to.

    Args:
        whole: Of the fused one.
        rows: Of its parts, in order.
    """
    parts = torch.split(whole.b, list(rows), dim=-2)
    moved = [bool(b.count_nonzero()) for b in parts]
    if not any(moved):
        return [replace(whole, b=b) for b in parts]
    own = [b for b, moves in zip(parts, moved, strict=True) if moves]
    blocks = iter(_unblocked(whole, own) or [replace(whole, b=b) for b in own])
    return [next(blocks) if moves else None for moves in moved]


def fused(parts: Sequence[Factors | None], rows: Sequence[int]) -> Factors:
    """One pair for a matrix that is these parts one below the other; None for parts without factors.

    Args:
        parts: At least one of them is there; all have the same strength.
        rows: Of each part.
    """
    own = [part for part in parts if part is not None]
    shared = all(torch.equal(part.a, own[0].a) for part in own)
    count = 1 if shared else len(own)
    a = own[0].a if shared else torch.cat([part.a for part in own])
    blocks, place = [], 0
    for part, height in zip(parts, rows, strict=True):
        block = a.new_zeros(height, len(a))
        if part is not None:
            block[:, place : place + part.b.shape[1]] = part.b
            place += 0 if shared else part.b.shape[1]
        blocks.append(block)
    return Factors(a, torch.cat(blocks), _times(own[0].strength, count))


def unstacked_by_expert(a: Tensor, b: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """PEFT's pair for a stack -> [X, r, I] and [X, O, r]."""
    return a.view(experts, -1, a.shape[1]), b.view(len(b), -1, experts).permute(2, 0, 1).contiguous()


def _unblocked(whole: Factors, parts: Sequence[Tensor]) -> list[Factors] | None:
    """The parts' own factors where each uses ranks that no other does; None where they share them."""
    count, rank = len(parts), whole.strength.rank
    if count == 1 or rank % count:
        return None
    step = rank // count
    spans = [slice(begin, begin + step) for begin in range(0, rank, step)]
    for place, b in enumerate(parts):
        others = torch.cat([b[..., span] for number, span in enumerate(spans) if number != place], dim=-1)
        if others.count_nonzero():
            return None
    strength = _times(whole.strength, 1 / count)
    return [
        Factors(whole.a[..., span, :].contiguous(), b[..., span].contiguous(), strength)
        for span, b in zip(spans, parts, strict=True)
    ]


def _times(strength: Strength, count: float) -> Strength:
    """Another rank and the same scale."""
    alpha = strength.alpha * (math.sqrt(count) if strength.rslora else count)
    return replace(strength, rank=round(strength.rank * count), alpha=alpha)
