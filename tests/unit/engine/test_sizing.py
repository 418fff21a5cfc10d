"""How many blocks an instance gets: what was asked for, or what a device's memory leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tandem.catalogue.arithmetic import step_bytes, weight_bytes
from tandem.catalogue.models import MODELS
from tandem.engine.config import InstanceConfig
from tandem.engine.sizing import GIB, block_count
from tandem.errors import UsageError
from tandem.kv.cache import CacheLayout

MODEL = MODELS["llama3.2-1b"].config
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
LAYOUT = CacheLayout.of(MODEL, "bfloat16", 16)
BLOCK = LAYOUT.bytes_per_block
STEP = step_bytes(MODEL, 2048, 64, 2)
WEIGHTS = weight_bytes(MODEL, "bfloat16")


def count(
    device: torch.device = CUDA,
    free: float = 24,
    total: float = 24,
    length: int = 1000,
    layout: CacheLayout = LAYOUT,
    **options,
) -> int:
    config = InstanceConfig(model=Path("m"), **options)

    def memory(asked: torch.device) -> tuple[int, int]:
        assert asked == device
        return int(free * GIB), int(total * GIB)

    return block_count(config, MODEL, layout, device, length, memory)


def test_a_device_gives_its_part_less_what_is_used_weights_and_a_step() -> None:
    assert count() == (int(24 * GIB * 0.9) - WEIGHTS - STEP) // BLOCK
    assert count(gpu_memory_utilization=0.5) == (12 * GIB - WEIGHTS - STEP) // BLOCK
    assert count(free=20) == (int(24 * GIB * 0.9) - 4 * GIB - WEIGHTS - STEP) // BLOCK


def test_larger_steps_leave_less() -> None:
    tokens, rows = count(max_num_batched_tokens=8192), count(max_num_seqs=256)
    assert tokens == (int(24 * GIB * 0.9) - WEIGHTS - step_bytes(MODEL, 8192, 64, 2)) // BLOCK < count()
    assert rows == (int(24 * GIB * 0.9) - WEIGHTS - step_bytes(MODEL, 2048, 256, 2)) // BLOCK < count()


def test_ranks_share_the_weights_and_have_smaller_blocks() -> None:
    layout = LAYOUT.of_rank(0, 4)
    found = count(layout=layout, tensor_parallel_size=4)
    assert found == (int(24 * GIB * 0.9) - WEIGHTS // 4 - STEP) // (BLOCK // 4)


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_what_was_asked_for_is_what_there_is(device: torch.device) -> None:
    assert count(device, kv_cache_gib=2.5) == int(2.5 * GIB) // BLOCK
    assert count(device, kv_cache_gib=2, tensor_parallel_size=2, layout=LAYOUT.of_rank(0, 2)) == 2 * GIB // BLOCK


def test_a_cpu_gives_one_gibibyte() -> None:
    assert count(CPU) == GIB // BLOCK


@pytest.mark.parametrize("ranks", [1, 4])
def test_a_cpu_must_have_what_was_asked_for_beside_the_weights_once_for_all_ranks(ranks: int) -> None:
    options = {"tensor_parallel_size": ranks, "layout": LAYOUT.of_rank(0, ranks)}
    free = 20 + WEIGHTS / GIB
    assert count(CPU, free=free, kv_cache_gib=20, **options) == 20 * GIB // BLOCK
    named = r"--kv-cache-gib 20: .* 22 GiB are available, and the model's weights take 2.3 GiB; lower it"
    with pytest.raises(UsageError, match=named):
        count(CPU, free=22, kv_cache_gib=20, **options)


def test_a_cpu_that_has_not_even_the_default_is_told_the_option() -> None:
    with pytest.raises(UsageError, match=r"--kv-cache-gib 1: .* 1.5 GiB are available"):
        count(CPU, free=1.5)


def test_one_request_just_fits_or_does_not() -> None:
    blocks = count(kv_cache_gib=0.25, length=1)
    assert count(kv_cache_gib=0.25, length=blocks * 16) == blocks
    with pytest.raises(UsageError):
        count(kv_cache_gib=0.25, length=blocks * 16 + 1)


@pytest.mark.parametrize(
    ("device", "options", "named"),
    [
        (CPU, {}, "--kv-cache-gib 1: one request of 100000 tokens needs 3.05 GiB .* there are 1;"),
        (CPU, {"kv_cache_gib": 0.5}, "--kv-cache-gib 0.5: .* there are 0.5;"),
        (CUDA, {"kv_cache_gib": 0.5}, "--kv-cache-gib 0.5: .* there are 0.5;"),
        (CUDA, {"gpu_memory_utilization": 0.2}, "--gpu-memory-utilization 0.2: .* raise it, or lower --max-model-len"),
        (CUDA, {"gpu_memory_utilization": 0.01}, "--gpu-memory-utilization 0.01: .* there are 0;"),
    ],
    ids=str,
)
def test_too_little_is_refused_by_the_option_that_decides(device: torch.device, options: dict, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        count(device, length=100_000, **options)
