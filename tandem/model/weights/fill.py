"""Parameters filled from files, chunk by chunk, each chunk read straight to where it stays.

What cannot go there directly, because it is converted, dequantised or bound for another device, passes through one
small buffer for each thread; so loading needs the model's own memory and little more, however large its tensors are.
Nothing is mapped: a file that changes later cannot change the model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from tandem.errors import ModelFolderError
from tandem.model.weights.block_scaled import dequantise
from tandem.model.weights.dtypes import TORCH_DTYPES
from tandem.model.weights.fit import Piece, Scales
from tandem.model.weights.stored import StoredTensor

CHUNK = 4 << 20
"""Bytes read at once: enough to be fast, small enough to stay in the processor's cache until they are converted."""
MOST_THREADS = 8


@dataclass(frozen=True, slots=True)
class _Chunk:
    stored: StoredTensor
    first: int
    """Its first row in the stored tensor."""
    target: Tensor
    """[rows, ...], without gaps."""
    scales: Scales | None
    columns: range | None


class _Queue:
    """Chunks for several threads, each made when it is taken: of a large model all together would fill 500 MB."""

    def __init__(self, chunks: Iterator[_Chunk]) -> None:
        self._chunks = chunks
        self._lock = Lock()

    def take(self) -> _Chunk | None:
        """The next chunk, or None if there is none."""
        with self._lock:
            return next(self._chunks, None)

    def drop(self) -> None:
        """Leave the rest."""
        with self._lock:
            self._chunks = iter(())


def fill(
    parameters: Mapping[str, Tensor], pieces: Collection[Piece], check: Callable[[], object] = lambda: None
) -> None:
    """Read pieces into the parameters they belong to, with as many threads as torch computes with.

    Args:
        parameters: By our name; each without gaps, on any device, of any floating dtype.
        pieces: As `fit` matched them, or `cut` made them smaller.
        check: Called now and then by any thread; what it raises ends the reading.

    Raises:
        ModelFolderError: A file cannot be read or became shorter.
    """
    todo = _Queue(chunk for piece in pieces for chunk in _chunks(piece, _target(parameters, piece)))
    threads = min(torch.get_num_threads(), MOST_THREADS)
    with ExitStack() as stack:
        handles = {path: _open(path, stack) for path in _paths(pieces)}
        pool = stack.enter_context(ThreadPoolExecutor(threads, thread_name_prefix="load"))
        stack.callback(todo.drop)  # Ctrl-C ends them after the chunks they are at
        for worker in [pool.submit(_work, todo, handles, check) for _ in range(threads)]:
            worker.result()


def read_into(handle: int, target: Tensor, offset: int, path: Path) -> None:
    """Read a CPU tensor's bytes, all of them, from an open file.

    Raises:
        ModelFolderError: The file cannot be read or ends before.
    """
    rest = target.reshape(-1).view(torch.uint8).numpy().data
    try:
        while rest:
            count = os.preadv(handle, [rest], offset)
            if not count:
                raise ModelFolderError(f"{path}: became shorter while it was read; copy it again")
            rest, offset = rest[count:], offset + count
    except OSError as error:
        raise ModelFolderError(f"{path}: cannot be read ({error.strerror}); copy it again") from None


def _target(parameters: Mapping[str, Tensor], piece: Piece) -> Tensor:
    parameter = parameters[piece.rows.name].detach()
    return parameter if piece.rows.expert is None else parameter[piece.rows.expert]


def _chunks(piece: Piece, target: Tensor) -> Iterator[_Chunk]:
    # A dequantised chunk is four times as large on its way through fp32.
    step = max(1, CHUNK // (piece.stored.row_bytes * (4 if piece.scales else 1)))
    for start in range(0, len(target), step):
        yield _Chunk(piece.stored, piece.first + start, target[start : start + step], piece.scales, piece.columns)


def _paths(pieces: Iterable[Piece]) -> set[Path]:
    return {one.path for piece in pieces for one in (piece.stored, piece.scales and piece.scales.stored) if one}


def _open(path: Path, stack: ExitStack) -> int:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise ModelFolderError(f"{path}: cannot be read ({error.strerror}); copy it again") from None
    stack.callback(os.close, handle)
    return handle


def _work(todo: _Queue, handles: Mapping[Path, int], check: Callable[[], object]) -> None:
    """One thread: take chunks until there are no more, or until one fails; then the others stop as well."""
    try:
        _read_chunks(todo, handles, check)
    finally:
        todo.drop()


def _read_chunks(todo: _Queue, handles: Mapping[Path, int], check: Callable[[], object]) -> None:
    buffer = torch.empty(0, dtype=torch.uint8)
    while chunk := todo.take():
        check()
        if _goes_straight(chunk):
            _read_rows(chunk.stored, chunk.first, chunk.target, handles)
            continue
        if buffer.numel() < (size := len(chunk.target) * chunk.stored.row_bytes):
            buffer = torch.empty(size, dtype=torch.uint8, pin_memory=chunk.target.is_cuda)
        raw = buffer[:size].view(TORCH_DTYPES[chunk.stored.dtype]).view(len(chunk.target), *chunk.stored.shape[1:])
        _read_rows(chunk.stored, chunk.first, raw, handles)
        rows = _scaled(raw, chunk, handles)
        chunk.target.copy_(rows if chunk.columns is None else rows[:, chunk.columns.start : chunk.columns.stop])


def _goes_straight(chunk: _Chunk) -> bool:
    return chunk.columns is None and chunk.target.is_cpu and chunk.target.dtype == TORCH_DTYPES[chunk.stored.dtype]


def _read_rows(stored: StoredTensor, first: int, target: Tensor, handles: Mapping[Path, int]) -> None:
    read_into(handles[stored.path], target, stored.offset + first * stored.row_bytes, stored.path)


def _scaled(raw: Tensor, chunk: _Chunk, handles: Mapping[Path, int]) -> Tensor:
    """What a chunk's numbers mean: they themselves, or they times the scales of their blocks."""
    if chunk.scales is None:
        return raw
    stored, (height, _) = chunk.scales.stored, chunk.scales.block
    top, bottom = chunk.first // height, -(-(chunk.first + len(raw)) // height)
    scales = torch.empty((bottom - top, stored.shape[1]), dtype=TORCH_DTYPES[stored.dtype])
    _read_rows(stored, top, scales, handles)
    return dequantise(raw, scales.float(), chunk.first - top * height, chunk.scales.block)
