"""The memory a cache lies in: on a CPU, memory that other processes of this host can be handed.

A memfd has no name, so nothing is left behind when its last user dies, however it dies.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

import torch
from torch import Tensor

CAN_SHARE = hasattr(os, "memfd_create")
"""Linux has it."""


@dataclass(frozen=True)
class Memory:
    """Bytes for one cache."""

    data: Tensor
    """uint8 [size]; not cleared on a device."""
    file: int | None
    """Descriptor of the same bytes; None where they cannot be handed to another process."""


def allocate(size: int, device: torch.device) -> Memory:
    """Memory of `size` bytes on a device.

    Raises:
        RuntimeError: The device has not as much.
    """
    if device.type != "cpu" or not CAN_SHARE:
        return Memory(torch.empty(size, dtype=torch.uint8, device=device), None)
    file = os.memfd_create("tandem-kv", os.MFD_CLOEXEC)
    try:
        os.ftruncate(file, size)
        return Memory(mapped(file, size), file)
    except OSError as error:
        os.close(file)
        raise RuntimeError(error.strerror) from None


def mapped(file: int, size: int) -> Tensor:
    """The bytes of a descriptor as a tensor, uint8 [size]; what is written there is seen by everybody who has it.

    Raises:
        OSError: They cannot be mapped.
    """
    return torch.frombuffer(mmap.mmap(file, size), dtype=torch.uint8)
