"""Causal attention within segments of rows: nothing between two segments is computed, and no mask is made.

Shapes: B rows, T tokens in each, H query heads, K key/value heads, D head dimension, Dv of values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tandem.kernels.attention import attend

HALVES = (torch.float16, torch.bfloat16)
"""What devices' own kernels compute in."""
MOST_ON_NPU = 1024
"""Segments that one call of `npu_fusion_attention` takes."""


def fits_segments(q: Tensor, v: Tensor, slopes: Tensor | None) -> bool:
    """Whether `attend_segments` takes these on their device; else a mask must do."""
    if q.device.type == "cpu":
        return True
    kernel = _KERNELS.get(q.device.type)
    same_width = q.shape[-1] == v.shape[-1]
    return kernel is not None and slopes is None and same_width and q.dtype in HALVES and kernel() is not None


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
    elif q.device.type == "npu":
        parts = [edges[begin : begin + MOST_ON_NPU + 1] for begin in range(0, len(edges) - 1, MOST_ON_NPU)]
        out = torch.cat([on_npu([one[part[0] : part[-1]] for one in flat], part, scale, window) for part in parts])
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


def on_npu(flat: Sequence[Tensor], edges: Sequence[int], scale: float, window: int | None) -> Tensor:
    """Ascend's fused attention, told where segments end; what it may see is one small mask for all lengths.

    Source: torch_npu's `npu_fusion_attention`, layout TND, sparse modes 3 (causal) and 4 (a band).

    Args:
        flat: q [N, H, D], k [N, K, D] and v [N, K, D], the tokens of the segments end to end.
        edges: Where segments begin, and the last one's end; the first may be other than 0.
        scale: Factor on the scores.
        window: As in `attend_segments`.

    Returns:
        [N, H, D].
    """
    fused = _fusion_attention()
    assert fused is not None, "fits_segments was not asked"
    q, k, v = flat
    ends = [edge - edges[0] for edge in edges[1:]]
    sides = {"sparse_mode": 3} if window is None else {"sparse_mode": 4, "pre_tockens": window - 1, "next_tockens": 0}
    mask = _triangle(q.device)
    out: Tensor = fused(
        q, k, v, q.shape[1], "TND", atten_mask=mask, scale=scale, actual_seq_qlen=ends, actual_seq_kvlen=ends, **sides
    )[0]
    return out


@cache
def _triangle(device: torch.device) -> Tensor:
    """True where nothing is seen, bool [2048, 2048]: the kernel's own form of every causal mask."""
    return torch.ones(2048, 2048, dtype=torch.bool, device=device).triu(1)


def _fusion_attention() -> Callable[..., Any] | None:
    """Ascend's attention over segments; None where torch_npu is not installed."""
    try:
        import torch_npu
    except ImportError:
        return None
    return getattr(torch_npu, "npu_fusion_attention", None)


def _varlen() -> Callable[..., Any] | None:
    """Torch's attention over segments; None where it has none, or none that takes windows."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "window_size" in varlen_attn.__annotations__ else None


_KERNELS = {"cuda": _varlen, "npu": _fusion_attention}
