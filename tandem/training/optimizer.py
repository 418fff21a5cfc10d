"""AdamW with weight decay on matrices only, and its state by parameter name.

Names instead of PyTorch's running numbers: a checkpoint can then be checked against the model, and read by eye.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from tandem.errors import CheckpointError
from tandem.training.config import StageConfig

STATE = ("step", "exp_avg", "exp_avg_sq")


def build_optimizer(model: nn.Module, stage: StageConfig) -> AdamW:
    """AdamW in two groups: matrices, which decay, and vectors (norms, biases), which do not.

    The embedding table is a matrix and decays, because here it is the output head as well.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": stage.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=stage.lr, betas=(stage.beta1, stage.beta2), fused=True)


def optimizer_tensors(model: nn.Module, optimizer: AdamW) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter>.<part>`, one tensor each; empty before the first step."""
    return {
        f"{name}.{part}": optimizer.state[parameter][part]
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for part in STATE
    }


def restore_optimizer(model: nn.Module, optimizer: AdamW, tensors: dict[str, Tensor], where: str) -> None:
    """Put back what `optimizer_tensors` gave.

    Raises:
        CheckpointError: A tensor is missing, surplus or misshapen.
    """
    wanted = {f"{name}.{part}" for name, _ in model.named_parameters() for part in STATE}
    if different := sorted(wanted ^ set(tensors)):
        raise CheckpointError(f"{where}: does not fit the model at {different[0]}; use the checkpoint's own recipe")
    for name, parameter in model.named_parameters():
        state = {part: tensors[f"{name}.{part}"] for part in STATE}
        if state["exp_avg"].shape != parameter.shape:
            raise CheckpointError(f"{where}: {name} is misshapen; use the checkpoint's own recipe")
        optimizer.state[parameter] = {part: _own(tensor, parameter) for part, tensor in state.items()}


def _own(tensor: Tensor, parameter: nn.Parameter) -> Tensor:
    """A copy of our own where the parameter is: tensors from a file may share its memory."""
    return torch.empty_like(tensor, device=parameter.device).copy_(tensor)
