"""AdamW: what decays, and its state by parameter name.

Names instead of PyTorch's running numbers: a checkpoint can then be checked against the model, and read by eye.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from tandem.training.settings.config import StageConfig

STATE = ("step", "exp_avg", "exp_avg_sq")
FUSED = {"cpu", "cuda", "xpu", "mps"}
"""Devices with an AdamW that goes over memory once; elsewhere it is torch's list-wise one."""


def build_optimizer(model: nn.Module, stage: StageConfig) -> AdamW:
    """AdamW over what is trained, in two groups: what decays, and what does not.

    Args:
        model: Its parameters may be sharded, and must not be replaced afterwards.
        stage: Learning rate, decay, betas, eps.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = [parameter for name, parameter in trained if decays(name, parameter)]
    plain = [parameter for name, parameter in trained if not decays(name, parameter)]
    optimizer = AdamW(
        [{"params": decayed, "weight_decay": stage.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=stage.lr,
        betas=(stage.beta1, stage.beta2),
        eps=stage.eps,
        fused=all(parameter.device.type in FUSED for _, parameter in trained),
    )
    _begin(optimizer)
    return optimizer


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay takes hold of a parameter: matrices, stacks of them (experts), and adapters' A and B.

    Embeddings are matrices and decay, as in Megatron, in transformers' Trainer and in nanoGPT, tied to the head or not.
    Norms and biases do not, however many are stacked.
    """
    return parameter.dim() > 1 and not name.endswith(("bias", "norm.weight"))


def optimizer_tensors(model: nn.Module, optimizer: AdamW) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter>.<part>`, one tensor each; the optimizer's own, to be read or filled."""
    return {
        f"{name}.{part}": optimizer.state[parameter][part]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        for part in STATE
    }


def _begin(optimizer: AdamW) -> None:
    """Give every parameter the state that AdamW would give it at its first step, so that a checkpoint can fill it."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            zeros = {part: torch.zeros_like(parameter) for part in STATE if part != "step"}
            # Where AdamW itself keeps it: fused kernels read it on the device.
            device = parameter.device if group["fused"] else torch.device("cpu")
            optimizer.state[parameter] = {"step": torch.zeros((), device=device), **zeros}
