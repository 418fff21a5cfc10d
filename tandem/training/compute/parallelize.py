"""What the ranks share of a model: FSDP2 shards every layer's parameters, gradients and optimizer state over all ranks.

A layer is whole only while it computes. Gradients are summed over the ranks and not averaged: losses are divided by the
valid targets of the whole batch already (`batch_loss.py`).

Tensor, pipeline, context and expert parallelism will come before this, layer by layer; recompute and adapters do so
already: they change what a layer is, and FSDP wraps what it finds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from tandem.model.decoder import Decoder
from tandem.model.folder import ALWAYS_FLOAT32
from tandem.parallel.world import World
from tandem.training.compute.loss import LossModel
from tandem.training.settings.config import Precision

Fill = Callable[[Decoder], None]
"""Gives every parameter of a decoder its first value, or this rank's rows of it."""


def parallelize(model: LossModel, world: World, precision: Precision) -> None:
    """Shard a model over the ranks, in place; a rank that is alone keeps it as it is.

    Args:
        model: The same on all ranks, in float32, or on the meta device. Its parameters become `DTensor`s, sharded by
            rows.
        world: The ranks.
        precision: What is computed in. Parameters, sums of gradients and the optimizer stay in float32.
    """
    if world.mesh is None:
        return
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    shard = partial(
        fully_shard,
        mesh=world.mesh,
        mp_policy=policy if precision == "bfloat16" else MixedPrecisionPolicy(),
        ignored_params={one for name, one in model.named_parameters() if name.endswith(ALWAYS_FLOAT32)},
    )
    for block in model.decoder.layers:
        shard(block)
    shard(model)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            _sum_gradients(module)


def materialise(model: LossModel, device: torch.device, fill: Fill) -> None:
    """Give a model that is on the meta device memory for what this rank holds of it, and numbers.

    A rank's host memory never holds more than its own part and one tensor: `fill` reads or draws them one by one.
    """
    model.to_empty(device=device)
    fill(model.decoder)


def _sum_gradients(module: FSDPModule) -> None:
    module.set_gradient_divide_factor(1.0)
    # Gloo has no scaled sum, not even by one.
    module.set_force_sum_reduction_for_comms(True)


def let_go(model: nn.Module) -> None:
    """Give up what a forward without a backward has left whole on every rank: the root's own parameters."""
    if isinstance(model, FSDPModule):
        model.reshard()


def trained(decoder: Decoder) -> dict[str, Tensor]:
    """The parameters that training moves, by their names in a checkpoint, `model.<parameter>`.

    Those with gradients; and the biases of routers that learn, which have none and go by loads (`loads.py`).
    """
    return {f"model.{name}": one.detach() for name, one in decoder.named_parameters() if _learns(decoder, name)}


def _learns(decoder: Decoder, name: str) -> bool:
    if name.endswith(ALWAYS_FLOAT32):
        name = name.removesuffix("bias") + "weight"
    return decoder.get_parameter(name).requires_grad
