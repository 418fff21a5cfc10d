"""What the ranks share of a model: FSDP2 shards every layer's parameters, gradients and optimizer state over all ranks.

A layer is whole only while it computes. Gradients are summed over the ranks and not averaged: losses are divided by the
valid targets of the whole batch already (`loop.py`).

Tensor, pipeline, context and expert parallelism will come before this, layer by layer; recompute and adapters do so
already: they change what a layer is, and FSDP wraps what it finds.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from tandem.model.decoder import Decoder
from tandem.model.folder import ALWAYS_FLOAT32
from tandem.model.skeleton import assembled
from tandem.parallel.world import World, named
from tandem.training.adapters.lora import fill_factors, lora_parameters, put_on, strengths
from tandem.training.compute.loss import LossModel
from tandem.training.settings.config import Precision


def parallelize(model: LossModel, world: World, precision: Precision) -> None:
    """Shard a model over the ranks, in place; a rank that is alone keeps it as it is.

    Args:
        model: The same on all ranks, in float32. Its parameters become `DTensor`s, sharded by rows.
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


def _sum_gradients(module: FSDPModule) -> None:
    module.set_gradient_divide_factor(1.0)
    # Gloo has no scaled sum, not even by one.
    module.set_force_sum_reduction_for_comms(True)


def let_go(model: nn.Module) -> None:
    """Give up what a forward without a backward has left whole on every rank: the root's own parameters."""
    if isinstance(model, FSDPModule):
        model.reshard()


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that gradients move, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def gathered(decoder: Decoder, world: World) -> Decoder | None:
    """The whole model in the leader's host memory; None on the other ranks. All of them call this together.

    Raises:
        ProcessError: A rank is gone.
    """
    if world.mesh is None:
        return decoder
    parameters: dict[str, Tensor] = {}
    with named("gathering the model"):
        for name, parameter in decoder.named_parameters():
            whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            if world.leads:
                parameters[name] = whole.detach().to("cpu")
    return _whole(decoder, parameters) if world.leads else None


def _whole(like: Decoder, parameters: dict[str, Tensor]) -> Decoder:
    factors = {name: parameters.pop(name) for name in lora_parameters(like)}
    decoder = assembled(like.config, parameters)
    if factors:
        put_on(decoder, strengths(like))
        fill_factors(decoder, factors)
    return decoder
