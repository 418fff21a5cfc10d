"""How many KV blocks an instance gets."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tandem.catalogue.arithmetic import DTYPE_BYTES, step_bytes, weight_bytes
from tandem.catalogue.config import ModelConfig
from tandem.engine.config import InstanceConfig
from tandem.errors import UsageError
from tandem.kv.cache import CacheLayout
from tandem.parallel.device import memory_of

GIB = 2**30
CPU_GIB = 1.0
"""Where nothing else is said: a CPU's memory is everybody's."""
MOST_GIB = 2**20
"""More memory than any device has."""

Memory = Callable[[torch.device], tuple[int, int]]


def block_count(
    config: InstanceConfig,
    model: ModelConfig,
    layout: CacheLayout,
    device: torch.device,
    length: int,
    memory: Memory = memory_of,
) -> int:
    """As many blocks as the memory allows.

    Args:
        config: Says how much memory, as `--kv-cache-gib` or as a part of the device's.
        model: Its weights and what a step needs are taken off.
        layout: Of one rank's cache.
        device: Of one rank; every rank's has as much.
        length: Most tokens of one request; at least these must fit.
        memory: Free and total bytes of a device; replaced in tests.

    Raises:
        UsageError: Not even one request fits, or a CPU has less memory than was asked for.
    """
    room, option = _room(config, model, layout, device, memory)
    blocks, needed = room // layout.bytes_per_block, -(-length // config.block_size)
    if blocks < needed:
        size = needed * layout.bytes_per_block / GIB
        raise UsageError(
            f"{option}: one request of {length} tokens needs {size:.3g} GiB for its keys and values, and there are "
            f"{max(room, 0) / GIB:.3g}; raise it, or lower --max-model-len"
        )
    return blocks


def _room(
    config: InstanceConfig, model: ModelConfig, layout: CacheLayout, device: torch.device, memory: Memory
) -> tuple[int, str]:
    """Bytes for keys and values on one rank, and the option that decides it."""
    weights, ranks = weight_bytes(model, layout.dtype), config.tensor_parallel_size
    if config.kv_cache_gib is not None or device.type == "cpu":
        gib = CPU_GIB if config.kv_cache_gib is None else config.kv_cache_gib
        if device.type == "cpu":
            _require_memory(gib, weights, memory(device)[0])
        return int(min(gib, MOST_GIB) * GIB) // ranks, f"--kv-cache-gib {gib:g}"
    free, total = memory(device)
    step = step_bytes(model, config.max_num_batched_tokens, config.max_num_seqs, DTYPE_BYTES[layout.dtype])
    most = int(total * config.gpu_memory_utilization) - (total - free)
    return most - weights // ranks - step, f"--gpu-memory-utilization {config.gpu_memory_utilization:g}"


def _require_memory(gib: float, weights: int, free: int) -> None:
    """A CPU's memory is taken when it is first written to, so what is not there would end the instance under load.

    All ranks of a CPU share it: they hold the weights and the cache once together.
    """
    if gib * GIB > free - weights:
        raise UsageError(
            f"--kv-cache-gib {gib:g}: of this machine's memory {free / GIB:.3g} GiB are available, and the model's "
            f"weights take {weights / GIB:.3g} GiB; lower it, or free memory"
        )
