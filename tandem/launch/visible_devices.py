"""Which devices this process shall see: those of its rank table, counted as this machine or container counts them.

A table has the host's numbers. A container that was given devices 4 and 5 has /dev/davinci4 and /dev/davinci5, and the
driver in it calls them 0 and 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tandem.errors import UsageError

KINDS = {"davinci": "ASCEND_RT_VISIBLE_DEVICES", "nvidia": "CUDA_VISIBLE_DEVICES"}
"""How Ascend's and NVIDIA's device files begin -> the variable that CANN and CUDA read."""


def visible_devices(
    devices: Sequence[int], environment: Mapping[str, str], folder: Path = Path("/dev")
) -> dict[str, str]:
    """The variable to set; nothing where it is set already, or where there are no devices at all.

    Args:
        devices: Physical numbers, in rank order.
        environment: Of this process.
        folder: Where the device files are.

    Raises:
        UsageError: There are devices, but not all of those.
    """
    for kind, variable in KINDS.items():
        there = sorted(
            int(found[1]) for path in folder.iterdir() if (found := re.fullmatch(rf"{kind}(\d+)", path.name))
        )
        if not there or variable in environment:
            continue
        for number in devices:
            if number not in there:
                found_here = ", ".join(f"{kind}{one}" for one in there)
                raise UsageError(
                    f"device {number} of the local rank table is not here: {folder} has {found_here}; "
                    "give it to the container, or generate the tables anew"
                )
        return {variable: ",".join(str(there.index(number)) for number in devices)}
    return {}
