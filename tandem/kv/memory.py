"""The memory a cache lies in: on a CPU, memory that other processes of this host can be handed.

A memfd has no name, so nothing is left behind when its last user dies, however it dies.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import weakref
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

CAN_SHARE = hasattr(os, "memfd_create")
"""Linux has it."""

F_SEAL_FUTURE_WRITE: Final = 0x10
"""linux/fcntl.h; Python's `fcntl` does not name it."""


@dataclass(frozen=True)
class Memory:
    """Bytes for one cache."""

    data: Tensor
    """uint8 [size]; not cleared on a device."""
    file: int | None
    """Descriptor of the same bytes; None where they cannot be handed to another process."""


def allocate(size: int, device: torch.device) -> Memory:
    """Memory of `size` bytes on a device; a descriptor is closed when nobody has the result any more.

    Raises:
        RuntimeError: The device has not as much.
    """
    if device.type != "cpu" or not CAN_SHARE:
        return Memory(torch.empty(size, dtype=torch.uint8, device=device), None)
    file = os.memfd_create("tandem-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(file, size)
        memory = Memory(mapped(file, size), file)
    except OSError as error:
        os.close(file)
        raise RuntimeError(error.strerror) from None
    weakref.finalize(memory, os.close, file)
    return memory


def mapped(file: int, size: int) -> Tensor:
    """The bytes of a descriptor as a tensor, uint8 [size]; what is written there is seen by everybody who has it.

    Raises:
        OSError: They cannot be mapped.
    """
    return torch.frombuffer(mmap.mmap(file, size), dtype=torch.uint8)


def seal(file: int) -> None:
    """Let nobody resize a descriptor's memory or map it for writing any more; who has mapped it writes on.

    A kernel before 5.1 cannot do the latter, and is asked for the former alone.
    """
    fixed = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fixed)
    with suppress(OSError):
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE)


def mapped_to_read(file: int) -> memoryview:
    """All bytes of another process's sealed memory.

    Raises:
        OSError: It cannot be mapped, or it could shrink under whoever reads it.
    """
    if not fcntl.fcntl(file, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
        raise OSError("the memory is not sealed")
    return memoryview(mmap.mmap(file, os.fstat(file).st_size, prot=mmap.PROT_READ))
