"""Network addresses of this host and of its devices."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Collection, Mapping

from tandem.errors import TopologyError
from tandem.topology.address import is_host

HCCN_TIMEOUT = 10.0
"""Seconds for one question to hccn_tool, which hangs when the driver does."""

HCCN_TOOL_PATH = "HCCN_TOOL_PATH"
"""The variable that says where hccn_tool is, the same as vllm-ascend's."""
USUAL_TOOL = "/usr/local/Ascend/driver/tools/hccn_tool"
"""Where the driver puts it, which is on no PATH."""

UNROUTED = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
"""Documentation addresses: nothing listens there, and nothing is sent."""


def local_address() -> str:
    """The address this host would use towards the outside, or 127.0.0.1 where it has no route out.

    Connecting a UDP socket only chooses a route; no packet leaves.
    """
    for family, target in UNROUTED:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((target, 9))
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return "127.0.0.1"


def addresses_of(device_ids: Collection[int], local_ip: str, given: Mapping[int, str] | None = None) -> dict[int, str]:
    """Address of each device: the given one, else what hccn_tool says, else (no hccn_tool) the host's.

    Args:
        device_ids: Physical device numbers on this host.
        local_ip: Address of this host.
        given: Addresses that are known already and not asked for.

    Raises:
        TopologyError: When hccn_tool is there but knows no address for a device, or is not where HCCN_TOOL_PATH says.
    """
    known = given or {}
    tool = hccn_tool() if set(device_ids) - set(known) else None
    return {
        device_id: known.get(device_id) or (hccn_address(tool, device_id) if tool else local_ip)
        for device_id in device_ids
    }


def hccn_tool() -> str | None:
    """Where hccn_tool is: as HCCN_TOOL_PATH says, else on the PATH, else where the driver puts it.

    Raises:
        TopologyError: When HCCN_TOOL_PATH is set and names no program.
    """
    if named := os.environ.get(HCCN_TOOL_PATH):
        if found := shutil.which(named):
            return found
        raise TopologyError(f"{HCCN_TOOL_PATH}={named} is no program; set it to the path of hccn_tool, or unset it")
    return shutil.which("hccn_tool") or shutil.which(USUAL_TOOL)


def hccn_address(tool: str, device_id: int) -> str:
    """Ask `hccn_tool -i N -ip -g` for the address of one device.

    Raises:
        TopologyError: When the tool fails, hangs or names no address.
    """
    command = [tool, "-i", str(device_id), "-ip", "-g"]
    fix = f"check that device {device_id} exists and has an address, or give it with --device-ip {device_id}=ADDRESS"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=HCCN_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise TopologyError(f"`{' '.join(command)}` gave no answer in {HCCN_TIMEOUT:.0f} s; {fix}") from None
    except OSError as error:
        raise TopologyError(f"`{' '.join(command)}` cannot run ({error.strerror}); {fix}") from None
    for line in done.stdout.splitlines():
        key, _, address = line.partition(":")
        if done.returncode == 0 and key.strip() == "ipaddr" and is_host(address.strip()):
            return address.strip()
    said = " ".join((done.stderr or done.stdout).split())[:200]
    raise TopologyError(f"`{' '.join(command)}` named no address (exit code {done.returncode}: {said}); {fix}")
