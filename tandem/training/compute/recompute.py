"""Activations computed again in the backward pass instead of being kept; what is kept decides what it costs.

Kept of a layer, per token, besides its input (E hidden, Q and K widths of queries and keys, F feed-forward):

    none        everything autograd asks for
    selective   what matrix products and attention gave: 3 E + 2 Q + 2 K + 2 F numbers. Norms, rotations, SiLU and sums
                are computed again: no matrix product is.
    full        nothing: the layer is computed again, a third more work in all

Megatron's "selective" computes attention's scores again; a fused attention never keeps them, so there it has no work.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from tandem.model.decoder import Decoder
from tandem.parallel.heap import trim_heap
from tandem.training.settings.config import Recompute

KEPT = ("mm", "addmm", "bmm", "baddbmm", "linear", "_grouped_mm")
ATTENTION = ("attention", "attn")
"""Parts of the names of attention's operators, of which every device has its own."""


def apply_recompute(decoder: Decoder, mode: Recompute) -> None:
    """Let every layer keep what `mode` says; before the layers are sharded, once.

    Gradients stay the same: on a CPU bit for bit.
    """
    if mode == "none":
        return
    # No generator has a state to restore: all randomness is a function of the position.
    settings: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if mode == "selective":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    for block in decoder.layers:
        forward = partial(checkpoint, block.forward, **settings)
        block.forward = partial(_tidied, forward) if mode == "full" else forward


def _tidied(forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """What a layer gives; before it is computed again, holes that others left in a CPU's memory are given back."""
    out = forward(*args, **kwargs)
    if out.requires_grad and out.device.type == "cpu":
        out.register_hook(lambda gradient: trim_heap())  # type: ignore[no-untyped-call]
    return out


def _policy(context: Any, operator: Callable[..., Any], *args: Any, **kwargs: Any) -> CheckpointPolicy:
    name = operator.__name__.partition(".")[0] if isinstance(operator, torch._ops.OpOverload) else ""
    kept = name in KEPT or any(part in name for part in ATTENTION)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
