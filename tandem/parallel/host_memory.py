"""How much of its machine's memory this process may still take.

Linux tells what is available; a control group the process is in, as of a container, may allow less. Its page cache does
not count: the kernel takes that back. Sources: the kernel's cgroup-v2.rst and cgroup-v1/memory.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import psutil

ROOT = Path("/")


def host_memory(root: Path = ROOT) -> tuple[int, int]:
    """Bytes that are left to this process, and the machine's bytes in all.

    Args:
        root: Where /proc and /sys are found; replaced in tests.
    """
    machine = psutil.virtual_memory()
    return min([machine.available, *_left_in_groups(root)]), machine.total


def host_swap() -> int:
    """Bytes of the machine's swap, used or not."""
    return int(psutil.swap_memory().total)


def _left_in_groups(root: Path) -> Iterator[int]:
    """What each control group that limits the process has left: its own, and all above it."""
    with suppress(OSError):  # not Linux
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers in ("", "memory"):
                mounted = root / "sys/fs/cgroup" / controllers
                own = PurePosixPath(name).relative_to("/")
                yield from (left for group in (own, *own.parents) if (left := _left(mounted / group)) is not None)


def _left(group: Path) -> int | None:
    """Bytes left in one group; None where it says nothing, or has no limit."""
    for limit, usage, total in (
        ("memory.max", "memory.current", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        with suppress(OSError, ValueError):  # ValueError: the limit is "max"
            most, used = (int((group / name).read_text()) for name in (limit, usage))
            return most - used + _page_cache(group, total)
    return None


def _page_cache(group: Path, total: str) -> int:
    counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return sum(int(counts[f"{total}{kind}_file"]) for kind in ("inactive", "active"))
