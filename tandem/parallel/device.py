"""Which device this process computes on, feature-detected: cpu, cuda (NVIDIA) or npu (Ascend, through torch_npu).

Run here on CPU only so far; the other two are the same calls with another device name.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Literal

import torch

from tandem.errors import UsageError
from tandem.parallel.host_memory import host_memory

DeviceName = Literal["auto", "cpu", "cuda", "npu"]
OUT_OF_MEMORY = ("can't allocate memory", "out of memory")
"""What torch says of a CPU, and of an NPU."""


def has_npu() -> bool:
    """Whether an Ascend device and its torch plug-in are there."""
    if importlib.util.find_spec("torch_npu") is None:
        return False
    importlib.import_module("torch_npu")
    return bool(torch.get_device_module("npu").is_available())


def choose_device(name: DeviceName) -> torch.device:
    """The device asked for, or for `auto` the best one there is.

    Raises:
        UsageError: The device asked for is not there.
    """
    there: dict[str, Callable[[], bool]] = {"cuda": torch.cuda.is_available, "npu": has_npu, "cpu": lambda: True}
    if name == "auto":
        return torch.device(next(kind for kind, is_there in there.items() if is_there()))
    if not there[name]():
        raise UsageError(f"--device {name}: this machine has none that torch can use; use --device cpu")
    return torch.device(name)


def choose_accelerator(role: str) -> Literal["cuda", "npu"]:
    """The best device that is not the CPU.

    Args:
        role: Who needs it, for the message.

    Raises:
        UsageError: There is none.
    """
    if (kind := choose_device("auto").type) == "cpu":
        raise UsageError(
            f"{role} needs an NPU or a GPU, and this machine has none that torch can use; "
            "to compute on the CPU all the same, give --device cpu"
        )
    return "npu" if kind == "npu" else "cuda"


def synchronise(device: torch.device) -> None:
    """Wait until everything that was asked of a device has been computed; a CPU never lags behind."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def memory_of(device: torch.device) -> tuple[int, int]:
    """Bytes of a device's memory that are free, and bytes in all; a CPU's are what the machine leaves this process."""
    if device.type == "cpu":
        return host_memory()
    free, total = torch.get_device_module(device).mem_get_info(device)
    return int(free), int(total)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says that a device, or the host, has no memory left; a CPU's and an NPU's have no type for that."""
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in OUT_OF_MEMORY)


def device_count(device: torch.device) -> int:
    """How many devices of this kind this process may use; of CPUs, one."""
    return 1 if device.type == "cpu" else torch.get_device_module(device).device_count()
