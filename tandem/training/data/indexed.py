"""Token documents as Megatron's `.bin/.idx` pair: what other trainers read and write too.

    .idx, little-endian
    0    9 bytes   MMIDIDX, two zero bytes
    9    u64       version = 1
    17   u8        code of the token type
    18   u64       sequences S
    26   u64       document boundaries D (documents + 1; here a document is one sequence, so D = S + 1)
    34   i32[S]    tokens in each sequence
    ...  i64[S]    byte offset of each sequence in the .bin
    ...  i64[D]    index of each document's first sequence

    .bin: the tokens, one after the other

Source: NVIDIA Megatron-LM, megatron/core/datasets/indexed_dataset.py. Its optional multimodal modes are not written,
and a file that has them is read without them.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tandem.errors import DataError
from tandem.files import write_whole

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
TOKEN_TYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
SMALL_VOCABULARY = 65500
"""Below this many ids a token takes two bytes; Megatron's own bound."""


def token_type(vocab_size: int) -> type[np.uint16] | type[np.int32]:
    """The type Megatron would choose for a vocabulary."""
    return np.uint16 if vocab_size < SMALL_VOCABULARY else np.int32


def paths_of(prefix: Path) -> tuple[Path, Path]:
    """The `.idx` and the `.bin` of a prefix, which may hold dots itself."""
    return prefix.with_name(prefix.name + ".idx"), prefix.with_name(prefix.name + ".bin")


class IndexedWriter(AbstractContextManager["IndexedWriter"]):
    """Streams documents into `<prefix>.bin` and `<prefix>.idx`; both appear when the block ends well, or neither.

    The `.idx` is written last and a pair is only read through it, so a kill between the two leaves no readable half.

    Args:
        prefix: Path without suffix.
        dtype: One of `TOKEN_TYPES`; signed where -100 is to be held.
    """

    def __init__(self, prefix: Path, dtype: type[np.integer[Any]]) -> None:
        self._prefix = prefix
        self._type = np.dtype(dtype).newbyteorder("<")
        self._lengths = array("i")
        prefix.parent.mkdir(parents=True, exist_ok=True)
        self._part = prefix.with_name(f".{prefix.name}.{os.getpid()}.bin.part")
        self._bin = self._part.open("wb")

    def add(self, tokens: NDArray[np.integer[Any]], lengths: Iterable[int]) -> None:
        """Append documents that lie one after the other.

        Args:
            tokens: [N].
            lengths: Tokens in each document, N in all.

        Raises:
            DataError: A token does not fit the type.
        """
        bounds = np.iinfo(self._type)
        if tokens.size and not bounds.min <= tokens.min() <= tokens.max() <= bounds.max:
            raise DataError(
                f"{self._prefix}: document {len(self._lengths)} or one after it holds ids from {tokens.min()} to "
                f"{tokens.max()}, which {self._type.name} cannot hold; use the tokenizer the vocabulary belongs to"
            )
        self._bin.write(tokens.astype(self._type).tobytes())
        self._lengths.extend(lengths)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the files their names, or leave none."""
        try:
            if kind is None:
                self._publish()
        finally:
            self._bin.close()
            self._part.unlink(missing_ok=True)

    def _publish(self) -> None:
        self._bin.flush()
        os.fsync(self._bin.fileno())
        # An older index must not be seen beside newer tokens.
        index, data = paths_of(self._prefix)
        index.unlink(missing_ok=True)
        self._part.replace(data)
        write_whole(index, _index(np.frombuffer(self._lengths, np.intc), self._type))


class IndexedTokens:
    """A `.bin/.idx` pair, mapped into memory: opening it costs nothing, whatever its size.

    Args:
        prefix: Path without suffix.

    Raises:
        DataError: A file is missing, is no such file, or the two do not belong together.
    """

    def __init__(self, prefix: Path) -> None:
        index, data = paths_of(prefix)
        for path in (index, data):
            if not path.exists():
                raise DataError(f"{path}: is missing; tokenise the corpus again")
        content = np.memmap(index, np.uint8, "r") if index.stat().st_size >= HEADER.size else np.empty(0, np.uint8)
        header = content[: HEADER.size].tobytes()
        if not header.startswith(MAGIC):
            raise DataError(f"{index}: is no Megatron index; tokenise the corpus again")
        _, version, code, sequences, boundaries = HEADER.unpack(header)
        if version != 1 or code not in TOKEN_TYPES or len(content) < HEADER.size + 12 * sequences + 8 * boundaries:
            raise DataError(
                f"{index}: is cut off or of an unknown kind (version {version}, type {code}); write it anew"
            )
        self.lengths: NDArray[np.int32] = np.frombuffer(content, "<i4", sequences, HEADER.size)
        """Tokens in each sequence."""
        self._pointers = np.frombuffer(content, "<i8", sequences, HEADER.size + 4 * sequences)
        self._boundaries = np.frombuffer(content, "<i8", boundaries, HEADER.size + 12 * sequences)
        if not _cover(self._boundaries, sequences):
            raise DataError(f"{index}: its documents are not made of its {sequences} sequences; write it anew")
        self.tokens = self._map(data, np.dtype(TOKEN_TYPES[code]).newbyteorder("<"))
        """All tokens one after the other, read-only."""

    @property
    def documents(self) -> NDArray[np.int64]:
        """Tokens in each document: of its one sequence, or of several where Megatron has split it into sentences."""
        begins = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        lengths: NDArray[np.int64] = np.diff(begins[self._boundaries])
        return lengths

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.lengths)

    def __getitem__(self, index: int) -> NDArray[Any]:
        """The tokens of one sequence."""
        begin = int(self._pointers[index]) // self.tokens.itemsize
        return self.tokens[begin : begin + int(self.lengths[index])]

    def _map(self, data: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
        expected, size = int(self.lengths.sum(dtype=np.int64)) * dtype.itemsize, data.stat().st_size
        if size != expected:
            raise DataError(f"{data}: has {size} bytes, its index asks for {expected}; tokenise the corpus again")
        return np.memmap(data, dtype=dtype, mode="r") if size else np.empty(0, dtype)


def _cover(boundaries: NDArray[np.int64], sequences: int) -> bool:
    """Whether every sequence is of one document, and the documents follow each other."""
    ends = boundaries[[0, -1]].tolist() if len(boundaries) else []
    return ends == [0, sequences] and bool((np.diff(boundaries) >= 0).all())


def _index(lengths: NDArray[np.intc], dtype: np.dtype[Any]) -> bytes:
    code = next(code for code, known in TOKEN_TYPES.items() if np.dtype(known) == dtype)
    sizes = lengths.astype("<i8")
    pointers = (np.cumsum(sizes) - sizes) * dtype.itemsize
    documents = np.arange(len(lengths) + 1, dtype="<i8")
    parts = (sizes.astype("<i4"), pointers.astype("<i8"), documents)
    return HEADER.pack(MAGIC, 1, code, len(lengths), len(documents)) + b"".join(part.tobytes() for part in parts)
