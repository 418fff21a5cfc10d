"""Which devices a process sees, as this machine counts them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tandem.errors import UsageError
from tandem.topology.visible_devices import accelerator_here, require_here, visible_devices


@pytest.mark.parametrize(
    ("files", "kind"), [(["davinci0"], "npu"), (["nvidia3", "nvidiactl"], "cuda"), (["nvidiactl", "null"], None)]
)
def test_the_kind_is_that_of_the_device_files(tmp_path: Path, files: list[str], kind: str | None) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert accelerator_here(tmp_path) == kind


@pytest.mark.parametrize(
    ("files", "environment", "devices", "expected"),
    [
        (["davinci4", "davinci5", "davinci_manager"], {}, (4, 5), {"ASCEND_RT_VISIBLE_DEVICES": "0,1"}),
        ([f"davinci{n}" for n in range(12)], {}, (10, 5), {"ASCEND_RT_VISIBLE_DEVICES": "10,5"}),
        (["nvidia4", "nvidia5", "nvidiactl"], {}, (5, 4), {"CUDA_VISIBLE_DEVICES": "1,0"}),
        (["nvidia4"], {"CUDA_VISIBLE_DEVICES": "GPU-1"}, (0,), {}),
        (["null"], {}, (4, 5), {}),
    ],
)
def test_devices_are_counted_as_the_container_counts_them(
    tmp_path: Path, files: list[str], environment: dict[str, str], devices: tuple[int, ...], expected: dict[str, str]
) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert visible_devices(devices, environment, tmp_path) == expected


def test_a_device_that_the_container_was_not_given_is_named(tmp_path: Path) -> None:
    (tmp_path / "davinci4").touch()
    with pytest.raises(UsageError, match=r"^device 5 is not here: .* has davinci4; give it to"):
        visible_devices((4, 5), {}, tmp_path)


@pytest.mark.parametrize(
    ("files", "environment", "message"),
    [
        (["davinci4"], {}, "device 5 is not here: .* has davinci4; give it to"),
        (["nvidia0", "nvidia7"], {}, "device 4 is not here: .* has nvidia0, nvidia7; give it to"),
        (["nvidia4", "nvidia5"], {}, None),
        (["nvidia0"], {"CUDA_VISIBLE_DEVICES": "0"}, None),
        (["nvidiactl"], {}, None),
    ],
)
def test_devices_are_compared_with_those_that_are_here(
    tmp_path: Path, files: list[str], environment: dict[str, str], message: str | None
) -> None:
    for name in files:
        (tmp_path / name).touch()
    if message is None:
        require_here((4, 5), environment, tmp_path)
        return
    with pytest.raises(UsageError, match=message):
        require_here((4, 5), environment, tmp_path)
