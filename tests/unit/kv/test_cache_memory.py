"""The memory of a cache: seen by whoever has its descriptor, fixed once it is sealed, gone with its last user."""

from __future__ import annotations

import gc
import mmap
import os
from pathlib import Path

import pytest
import torch

from tandem.kv.cache import CacheLayout, KVCache
from tandem.kv.memory import CAN_SHARE, Memory, allocate, mapped, mapped_to_read, seal

CPU = torch.device("cpu")
SIZE = 3 * mmap.PAGESIZE + 100

needs_descriptors = pytest.mark.skipif(not CAN_SHARE, reason="this system has no memfd")


def descriptor(memory: Memory) -> int:
    assert memory.file is not None
    return memory.file


@needs_descriptors
def test_what_one_writes_everybody_sees_who_has_the_descriptor() -> None:
    memory = allocate(SIZE, CPU)
    assert memory.data.shape == (SIZE,)
    assert memory.data.dtype == torch.uint8
    other = mapped(descriptor(memory), SIZE)
    memory.data[[0, SIZE - 1]] = torch.tensor([7, 9], dtype=torch.uint8)
    other[5] = 3
    assert (other[0], other[SIZE - 1], memory.data[5]) == (7, 9, 3)


@needs_descriptors
def test_a_reader_sees_later_writes_and_cannot_write() -> None:
    memory = allocate(SIZE, CPU)
    seal(descriptor(memory))
    view = mapped_to_read(descriptor(memory))
    assert len(view) >= SIZE
    memory.data[4] = 17
    assert view[4] == 17
    assert view.readonly


@needs_descriptors
def test_memory_that_could_shrink_under_its_reader_is_refused() -> None:
    memory = allocate(SIZE, CPU)
    with pytest.raises(OSError, match="not sealed"):
        mapped_to_read(descriptor(memory))


@needs_descriptors
@pytest.mark.parametrize("size", [0, SIZE - 1, SIZE + 1])
def test_sealed_memory_keeps_its_size(size: int) -> None:
    memory = allocate(SIZE, CPU)
    file = descriptor(memory)
    seal(file)
    with pytest.raises(PermissionError):
        os.ftruncate(file, size)
    assert os.fstat(file).st_size == SIZE


@needs_descriptors
def test_sealed_memory_is_not_mapped_for_writing_again() -> None:
    memory = allocate(SIZE, CPU)
    seal(descriptor(memory))
    memory.data[0] = 1  # whoever had it writes on
    with pytest.raises(PermissionError):
        mapped(descriptor(memory), SIZE)


@needs_descriptors
def test_a_new_program_does_not_inherit_the_descriptor() -> None:
    memory = allocate(SIZE, CPU)
    assert not os.get_inheritable(descriptor(memory))


def descriptors() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


@needs_descriptors
def test_memory_that_cannot_be_had_is_said_so_and_leaves_no_descriptor() -> None:
    before = descriptors()
    with pytest.raises(RuntimeError):
        allocate(2**62, CPU)
    assert descriptors() == before


@needs_descriptors
def test_a_cache_that_nobody_has_any_more_leaves_no_descriptor() -> None:
    layout = CacheLayout(layers=1, planes=2, kv_heads=1, head_dim=2, dtype="float32", block_size=2)
    before = descriptors()
    caches = [KVCache(layout, 3, CPU) for _ in range(5)]
    assert descriptors() > before
    del caches
    assert descriptors() == before


def test_a_cache_lies_in_the_memory_it_is_given() -> None:
    layout = CacheLayout(layers=1, planes=2, kv_heads=1, head_dim=2, dtype="float32", block_size=2)
    memory = allocate(3 * layout.bytes_per_block, CPU)
    first, second = KVCache(layout, 3, CPU, memory), KVCache(layout, 3, CPU, memory)
    first.write(0, first.slots([2], 0, 1), torch.ones(1, 1, 2), torch.full((1, 1, 2), 2.0))
    assert [plane.tolist() for plane in second.read(0, torch.tensor([2]), 1)] == [[[[1, 1]]], [[[2, 2]]]]
