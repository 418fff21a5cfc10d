"""The machine as a run finds it: versions, limits of a process, shared memory, the clock."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import shutil
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from tandem.catalogue.drawing import size_text
from tandem.parallel.device import DeviceName, choose_device
from tandem.training.launch.ranks import Hosts
from tandem.training.preflight.finding import Remark, good, problem
from tandem.training.settings.config import Launch

OWN_FILES = 256
"""Open at once beside those of the weights: libraries, data, connections among ranks."""
SHARED = 1 << 30
"""Bytes of /dev/shm with which NCCL is sure to do; containers have 64 MiB unless they are told. NCCL's guide,
Troubleshooting, Docker."""
SKEW_S = 300.0
"""Seconds that clocks of one network may differ."""


def look_at_machine(launch: Launch, device: DeviceName, weights: int, inputs: Iterable[Path]) -> Iterator[Remark]:
    """What every run stands on.

    Args:
        launch: Which ranks there are.
        device: What they train on.
        weights: Files of weights, all of which are open while they are read.
        inputs: Files that are there; none of them can be younger than now.

    Raises:
        UsageError: There is no such device.
    """
    yield from look_at_versions()
    yield from look_at_open_files(weights + OWN_FILES)
    if choose_device(device).type != "cpu" and Hosts.of(launch, device).ranks > 1:
        yield from look_at_shared_memory(Path("/dev/shm"))  # noqa: S108
    yield from look_at_clock(inputs)


def look_at_open_files(needed: int) -> Iterator[Remark]:
    """Whether a process may have so many files open."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < needed:
        yield problem(f"a process may open {most} files, and this run opens {needed}; run `ulimit -n {needed}`")


def look_at_shared_memory(place: Path) -> Iterator[Remark]:
    """Whether ranks on devices have enough of it."""
    if (size := shutil.disk_usage(place).total) < SHARED:
        yield problem(
            f"{place}: has {size_text(size)}, and ranks on devices share it; give the container more, as with "
            "--shm-size=16g"
        )


def look_at_versions() -> Iterator[Remark]:
    """Of Python and torch, and whether Ascend's plug-in is made for this torch."""
    found = {name: version for name in ("torch", "torch_npu") if (version := _version(name))}
    yield good(", ".join([f"Python {platform.python_version()}", *(f"{name} {one}" for name, one in found.items())]))
    torch, plugin = found.get("torch", ""), found.get("torch_npu", "")
    if plugin and torch.split(".")[:2] != plugin.split(".")[:2]:
        yield problem(
            f"torch_npu {plugin} is made for another torch than {torch}, which is here; install the two of one version"
        )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def look_at_clock(inputs: Iterable[Path]) -> Iterator[Remark]:
    """A clock that is behind makes object stores and certificates refuse, and steps with wrong times."""
    newest = max(inputs, key=lambda path: path.stat().st_mtime, default=None)
    if newest is not None and (changed := newest.stat().st_mtime) > time.time() + SKEW_S:
        when = datetime.fromtimestamp(changed, UTC).isoformat(" ", "seconds")
        yield problem(f"{newest}: was changed at {when}, which is later than now; set this machine's clock")
