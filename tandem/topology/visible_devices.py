"""The accelerators of this machine or container: of which kind they are, and which of them a process shall see.

A table has the host's numbers. A container that was given devices 4 and 5 has /dev/davinci4 and /dev/davinci5, and the
driver in it calls them 0 and 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from tandem.errors import UsageError

Accelerator = Literal["npu", "cuda"]

FILES: Mapping[Accelerator, str] = {"npu": "davinci", "cuda": "nvidia"}
"""How the device files of each kind begin."""
VARIABLES: Mapping[Accelerator, str] = {"npu": "ASCEND_RT_VISIBLE_DEVICES", "cuda": "CUDA_VISIBLE_DEVICES"}
"""What CANN and CUDA read."""
DEV = Path("/dev")


def accelerator_here(folder: Path = DEV) -> Accelerator | None:
    """The kind of accelerator whose device files are here; None where there is none."""
    return next((kind for kind in FILES if device_numbers(kind, folder)), None)


def device_numbers(kind: Accelerator, folder: Path = DEV) -> list[int]:
    """The physical numbers of the devices that are here, ascending."""
    matches = (re.fullmatch(rf"{FILES[kind]}(\d+)", path.name) for path in folder.iterdir())
    return sorted(int(found[1]) for found in matches if found)


def visible_devices(devices: Sequence[int], environment: Mapping[str, str], folder: Path = DEV) -> dict[str, str]:
    """The variable to set; nothing where it is set already, or where there are no devices at all.

    Args:
        devices: Physical numbers, in rank order.
        environment: Of this process.
        folder: Where the device files are.

    Raises:
        UsageError: There are devices, but not all of those.
    """
    kind = accelerator_here(folder)
    if kind is None or not devices or VARIABLES[kind] in environment:
        return {}
    require_here(devices, environment, folder)
    there = device_numbers(kind, folder)
    return {VARIABLES[kind]: ",".join(str(there.index(number)) for number in devices)}


def require_here(devices: Sequence[int], environment: Mapping[str, str], folder: Path = DEV) -> None:
    """Refuse a device that is not here, where there are any; not where the variable is set, whose numbers are others.

    Args:
        devices: Physical numbers.
        environment: Of this process.
        folder: Where the device files are.

    Raises:
        UsageError: Naming the device and those that are here.
    """
    kind = accelerator_here(folder)
    if kind is None or VARIABLES[kind] in environment:
        return
    there = device_numbers(kind, folder)
    if strangers := [number for number in devices if number not in there]:
        found_here = ", ".join(f"{FILES[kind]}{one}" for one in there)
        raise UsageError(
            f"device {strangers[0]} is not here: {folder} has {found_here}; "
            "give it to the container, or give the instance other devices"
        )
