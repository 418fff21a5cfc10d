"""Causal attention of new tokens over all tokens of their sequence, with what families add: windows and ALiBi.

Shapes: B sequences of equal length, T new tokens, S tokens with the new ones at the end, H query heads, K key/value
heads, G = H / K, D head dimension of queries and keys, Dv of values.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MASK_NUMBERS = 2**24
"""Most scores under one mask: ALiBi's bias is as large as they are, and so are the scores where a device's kernel does
not take the mask and computes them whole."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    window: int | None = None,
    slopes: Tensor | None = None,
    same: Tensor | None = None,
) -> Tensor:
    """Attend from the last T of S tokens to those before them and to themselves.

    Args:
        q: [B, T, H, D].
        k: [B, S, K, D].
        v: [B, S, K, Dv].
        scale: Factor on the scores.
        window: A token sees itself and the `window - 1` tokens before it; None for all.
        slopes: ALiBi's, [H]: a score loses slope times distance.
        same: Which tokens belong together where rows hold several sequences, bool [B, T, S]; None where all do.

    Returns:
        [B, T, H, Dv].
    """
    new, seen = q.shape[1], k.shape[1]
    if new == 1 and same is None:
        if window is not None and window < seen:
            k, v = k[:, -window:], v[:, -window:]
        return _attend_one(q, k, v, scale, slopes)
    if slopes is None and same is None and new == seen and (window is None or window >= seen):
        return _sdpa(q, k, v, scale, None)
    return _attend_masked(q, k, v, scale, window, slopes, same)


def _attend_one(q: Tensor, k: Tensor, v: Tensor, scale: float, slopes: Tensor | None) -> Tensor:
    """A lone token sees everything, so the G heads of a group are G rows of one head: no key is repeated."""
    batch, _, heads, dim = q.shape
    grouped = q.reshape(batch, k.shape[2], -1, dim)
    bias = None
    if slopes is not None:
        distance = torch.arange(1 - k.shape[1], 1, device=q.device)
        bias = (slopes[:, None] * distance).to(q.dtype).view(1, *grouped.shape[1:3], -1)
    out = F.scaled_dot_product_attention(grouped, k.transpose(1, 2), v.transpose(1, 2), attn_mask=bias, scale=scale)
    return out.reshape(batch, 1, heads, -1)


def _attend_masked(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, slopes: Tensor | None, same: Tensor | None
) -> Tensor:
    """In pieces of rows, each with its own mask and without the tokens that none of its rows may see."""
    new, seen = q.shape[1], k.shape[1]
    rows = max(MASK_NUMBERS // (q.shape[2] * seen), 1)
    pieces = []
    for begin in range(0, new, rows):
        end = min(begin + rows, new)
        first, stop = seen - new + begin, seen - new + end
        visible = _visible(first, end - begin, stop, window, q.device)
        if same is not None:
            visible = (visible & same[:, begin:end, :stop])[:, None]
        mask = visible if slopes is None else _biased(visible, first, slopes).to(q.dtype)
        pieces.append(_sdpa(q[:, begin:end], k[:, :stop], v[:, :stop], scale, mask))
    return torch.cat(pieces, dim=1)


def _biased(visible: Tensor, first: int, slopes: Tensor) -> Tensor:
    """ALiBi for rows from position `first`: bool [..., rows, stop] -> [..., H, rows, stop]."""
    rows, stop = visible.shape[-2:]
    place = torch.arange(stop, device=visible.device)
    distance = place - place[first : first + rows, None]
    return (slopes[:, None, None] * distance).masked_fill(~visible, float("-inf"))


def _visible(start: int, new: int, seen: int, window: int | None, device: torch.device) -> Tensor:
    """Which tokens new token i at position start + i may see, bool [new, seen]."""
    mask = torch.ones(new, seen, dtype=torch.bool, device=device).tril(start)
    return mask if window is None else mask.triu(start - window + 1)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)
