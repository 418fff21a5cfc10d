"""The norm of all gradients together, and their scaling where it is too large; the same on all ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], most: float) -> float:
    """Scale all gradients by one factor so that their norm is at most `most`; returns the norm before.

    Args:
        parameters: Sharded ones (DTensors, over whatever meshes) and whole ones, whose gradients are the same on all
            ranks. Those without a gradient have no part. Every rank must call this, with the same ones.
        most: Largest norm. Where the norm is no number, nothing is scaled.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = float(gradient_norm(gradients))
    if norm > most:
        for group in _by_mesh(gradients):
            torch._foreach_mul_(group, most / norm)
    return norm


def gradient_norm(gradients: Iterable[Tensor]) -> Tensor:
    """Euclidean norm over all, fp32 scalar; zero where there are none."""
    norms = [_whole(get_total_norm(group)).float() for group in _by_mesh(gradients)]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def _by_mesh(gradients: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """Sharded tensors of one mesh can be taken together, others cannot."""
    groups: dict[object, list[Tensor]] = defaultdict(list)
    for gradient in gradients:
        # DTensors, whose class takes a second to import.
        mesh = getattr(gradient, "device_mesh", None)
        groups[None if mesh is None else (mesh, gradient.placements)].append(gradient)  # type: ignore[attr-defined]
    return groups.values()


def _whole(norm: Tensor) -> Tensor:
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
