"""How many operations a device can do in a second: what MFU divides by.

From a data sheet where the device is known by name and computes in 16 bits, else measured here by matrix products.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache

import torch

from tandem.parallel.device import synchronise

SHEETS: tuple[tuple[str, float, str], ...] = (
    # Part of the name -> TFLOP/s, dense, bfloat16 with fp32 sums; NVIDIA's sheets print twice that, with sparsity.
    ("GB200", 2500, "nvidia.com/en-us/data-center/gb200-nvl72"),
    ("B200", 2250, "nvidia.com/en-us/data-center/hgx"),
    ("GH200", 989, "resources.nvidia.com/en-us-grace-cpu/grace-hopper-superchip"),
    ("H200", 989, "nvidia.com/en-us/data-center/h200"),
    ("H100 PCIe", 756, "nvidia.com/en-us/data-center/h100"),
    ("H100 NVL", 835, "nvidia.com/en-us/data-center/h100"),
    ("H100", 989, "nvidia.com/en-us/data-center/h100"),
    ("H800", 989, "the chip of the H100; only its links are slower"),
    ("H20", 148, "public specifications of the H20"),
    ("A100", 312, "nvidia.com/en-us/data-center/a100"),
    ("A800", 312, "the chip of the A100; only its links are slower"),
    ("L40S", 362, "nvidia.com/en-us/data-center/l40s"),
    ("L40", 181, "nvidia.com/en-us/data-center/l40"),
    ("A40", 149.7, "nvidia.com/en-us/data-center/a40"),
    ("L4", 121, "nvidia.com/en-us/data-center/l4"),
    # Ascend 910B is sold in four speeds, and Huawei publishes no sheet for each: measured, like all that is not here.
)
"""The first part that the device's name has counts, so longer ones stand first."""

SIZES = {"cpu": (256, 768)}
"""Rows and columns of what is multiplied. A large product is a little faster on an idle CPU; beside other programs only
a small one is ever done without an interruption, and its fastest run says what the machine can do."""
LARGE = (8192,)
"""The same on other devices."""
SECONDS = 0.15
"""Spent on each size, beside its first product."""


@dataclass(frozen=True)
class Peak:
    """Operations per second of one device, and who says so."""

    flops: float
    source: str

    def __str__(self) -> str:
        """As in `989 TFLOP/s (data sheet, …)`."""
        return f"{self.flops / 1e12:,.4g} TFLOP/s ({self.source})"


def peak_of(device: torch.device, dtype: torch.dtype) -> Peak:
    """The peak of a device in a dtype."""
    if device.type == "cpu":
        return _measured("cpu", dtype, torch.get_num_threads())
    name = torch.get_device_module(device).get_device_name(device)
    return sheet_peak(name, dtype) or _measured(str(device), dtype, 0)


def sheet_peak(name: str, dtype: torch.dtype) -> Peak | None:
    """What the data sheet says of a device by name; None where there is none, or not for this dtype."""
    if dtype not in (torch.bfloat16, torch.float16):
        return None
    found = next(((flops, source) for part, flops, source in SHEETS if part in name), None)
    return None if found is None else Peak(found[0] * 1e12, f"data sheet of {name}, dense 16-bit, {found[1]}")


@cache
def _measured(device: str, dtype: torch.dtype, threads: int) -> Peak:
    """The fastest of some products of two square matrices."""
    here = torch.device(device)
    speed, size = max((_speed(size, here, dtype), size) for size in SIZES.get(device, LARGE))
    what = f"measured: {size} x {size} product, {str(dtype).removeprefix('torch.')}"
    return Peak(speed, what + (f", {threads} CPU threads" if threads else ""))


def _speed(size: int, device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of the fastest product of one size."""
    matrix = torch.full((size, size), 0.5, dtype=dtype, device=device)
    best, until = float("inf"), time.perf_counter() + SECONDS
    _timed(matrix)  # the first one also loads what it needs
    while best == float("inf") or time.perf_counter() < until:
        best = min(best, _timed(matrix))
    return 2 * size**3 / best


@torch.no_grad()
def _timed(matrix: torch.Tensor) -> float:
    synchronise(matrix.device)
    began = time.perf_counter()
    torch.mm(matrix, matrix)
    synchronise(matrix.device)
    return time.perf_counter() - began
