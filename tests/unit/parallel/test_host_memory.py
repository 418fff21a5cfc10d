"""What a machine leaves this process, told by files as Linux and control groups of both versions write them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tandem.parallel import host_memory as module
from tandem.parallel.host_memory import host_memory

GIB = 2**30
NO_LIMIT = 9223372036854771712


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 of 32 GiB are available."""
    told = SimpleNamespace(available=16 * GIB, total=32 * GIB)
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: told)


def is_in(root: Path, *lines: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in lines))


def group(root: Path, path: str, limit: int | str, used: int, cached: int = 0) -> None:
    """One of version 2, which has half of its page cache in each list."""
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    stat = {"anon": used - cached, "file": cached, "inactive_file": cached // 2, "active_file": cached // 2}
    (folder / "memory.stat").write_text("".join(f"{name} {value}\n" for name, value in stat.items()))


def old_group(root: Path, path: str, limit: int, used: int, cached: int) -> None:
    """One of version 1."""
    folder = root / "sys/fs/cgroup/memory" / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"inactive_file 1\ntotal_inactive_file {cached}\ntotal_active_file 0\n")


def test_without_control_groups_the_machine_decides(tmp_path: Path) -> None:
    assert host_memory(tmp_path) == (16 * GIB, 32 * GIB)


def test_a_group_leaves_its_limit_less_what_is_used_but_for_page_cache(tmp_path: Path) -> None:
    is_in(tmp_path, "0::/pod/box")
    group(tmp_path, "pod/box", 8 * GIB, used=5 * GIB, cached=2 * GIB)
    assert host_memory(tmp_path) == (5 * GIB, 32 * GIB)


def test_the_narrowest_group_above_decides(tmp_path: Path) -> None:
    is_in(tmp_path, "0::/pod/box")
    group(tmp_path, "pod/box", "max", used=GIB)
    group(tmp_path, "pod", 4 * GIB, used=3 * GIB)
    assert host_memory(tmp_path)[0] == GIB


def test_a_container_that_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    is_in(tmp_path, "0::/")
    group(tmp_path, "", 3 * GIB, used=GIB)
    assert host_memory(tmp_path)[0] == 2 * GIB


def test_groups_of_version_1(tmp_path: Path) -> None:
    """The path is the host's, of which a container sees only the root."""
    is_in(tmp_path, "5:cpu,cpuacct:/docker/abc", "4:memory:/docker/abc", "0::/")
    old_group(tmp_path, "", 4 * GIB, used=3 * GIB, cached=GIB)
    assert host_memory(tmp_path)[0] == 2 * GIB


def test_a_group_wider_than_the_machine_changes_nothing(tmp_path: Path) -> None:
    is_in(tmp_path, "4:memory:/")
    old_group(tmp_path, "", NO_LIMIT, used=GIB, cached=0)
    assert host_memory(tmp_path)[0] == 16 * GIB
