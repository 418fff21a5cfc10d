"""The mean loss of a batch, computed in micro-batches: with its gradient for a step, or alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from tandem.parallel.world import World
from tandem.training.compute.balance import Balance
from tandem.training.compute.loss import LossModel
from tandem.training.compute.parallelize import let_go
from tandem.training.compute.precision import computing_in
from tandem.training.data.batch import Batch


def backward(
    model: LossModel,
    parts: Sequence[Batch],
    valid: int,
    dtype: torch.dtype = torch.float32,
    balance: Balance | None = None,
) -> Tensor:
    """Add the gradient of micro-batches to the parameters; returns their part of the mean loss, in nats, fp32 scalar.

    Every micro-batch is divided by the valid targets of the whole batch of all ranks and not by its own: where they
    differ, as in fine-tuning, a mean of means would weigh tokens by their neighbours and depend on the split.

    Args:
        model: Its parameters' gradients are added to.
        parts: At least one.
        valid: Valid targets of the whole batch.
        dtype: What is computed in.
        balance: Adds the gradient of another loss, which is not in the result.
    """
    total = torch.zeros((), device=parts[0].tokens.device)
    for part in parts:
        with computing_in(model, dtype), balance.over(part) if balance else nullcontext():
            loss = model(part.tokens, part.targets, part.context()) / max(1, valid)
            loss.backward()
        total += loss.detach()
    return total


@torch.no_grad()
def mean_loss(model: LossModel, parts: Sequence[Batch], world: World, dtype: torch.dtype = torch.float32) -> float:
    """Mean over the valid targets of all ranks' micro-batches, in nats.

    Args:
        model: Learns nothing.
        parts: This rank's; as many on every rank.
        world: The ranks.
        dtype: What is computed in.

    Raises:
        ProcessError: A rank is gone.
    """
    total = torch.zeros(2, device=world.device, dtype=torch.float32)
    for part in parts:
        with computing_in(model, dtype):
            loss = model(part.tokens, part.targets, part.context())
        total += torch.stack([loss, torch.tensor(float(part.valid()), device=loss.device)])
    let_go(model)
    loss, valid = world.total(total)
    return float(loss / valid.clamp(min=1))
