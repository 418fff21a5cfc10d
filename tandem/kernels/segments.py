"""Causal attention within segments of rows: nothing between two segments is computed, and no mask is made.

Shapes: B rows, T tokens in each, H query heads, K key/value heads, D head dimension, Dv of values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tandem.kernels.attention import attend

HALVES = (torch.float16, torch.bfloat16)
"""What `varlen_attn` computes in."""


def fits_segments(q: Tensor, v: Tensor, slopes: Tensor | None) -> bool:
    """Whether `attend_segments` takes these on their device; else a mask must do."""
    if q.device.type == "cpu":
        return True
    same_width = q.shape[-1] == v.shape[-1]
    return q.device.type == "cuda" and slopes is None and same_width and q.dtype in HALVES and _varlen() is not None


def attend_segments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    edges: Sequence[int],
    *,
    scale: float,
    window: int | None = None,
    slopes: Tensor | None = None,
) -> Tensor:
    """Attend within segments, each token to those before it and to itself.

    Args:
        q: [B, T, H, D].
        k: [B, T, K, D].
        v: [B, T, K, Dv].
        edges: Where segments begin in the B T tokens end to end, ascending from 0, and B T.
        scale: Factor on the scores.
        window: A token sees itself and the `window - 1` tokens before it; None for all.
        slopes: ALiBi's, [H].

    Returns:
        [B, T, H, Dv].
    """
    flat = [tensor.flatten(0, 1) for tensor in (q, k, v)]
    if q.device.type == "cuda":
        out = _on_cuda(flat, edges, scale, window)
    else:
        # Split at once: the gradient of a piece cut out would be as large as the whole, once for each.
        lengths = [end - begin for begin, end in pairwise(edges)]
        pieces = zip(*(torch.split(tensor, lengths) for tensor in flat), strict=True)
        seen = [attend(*(one[None] for one in piece), scale=scale, window=window, slopes=slopes)[0] for piece in pieces]
        out = torch.cat(seen)
    return out.view(*q.shape[:2], *out.shape[1:])


def _on_cuda(flat: Sequence[Tensor], edges: Sequence[int], scale: float, window: int | None) -> Tensor:
    varlen = _varlen()
    assert varlen is not None, "fits_segments was not asked"
    q, k, v = flat
    bounds = torch.tensor(edges, dtype=torch.int32, device=q.device)
    longest = max(end - begin for begin, end in pairwise(edges))
    # A window of (n, 0) is causal: n tokens before and none behind; -1 is all of them.
    sides = (-1 if window is None else window - 1, 0)
    grouped = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
    out: Tensor = varlen(q, k, v, bounds, bounds, longest, longest, scale=scale, window_size=sides, **grouped)
    return out


def _varlen() -> Callable[..., Any] | None:
    """Torch's attention over segments; None where it has none, or none that takes windows."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "window_size" in varlen_attn.__annotations__ else None
