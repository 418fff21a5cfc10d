from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.errors import DataError
from tandem.training.data.indexed import IndexedTokens, IndexedWriter, token_type


def write(prefix: Path, documents: list[list[int]], vocab_size: int = 1000) -> None:
    with IndexedWriter(prefix, token_type(vocab_size)) as writer:
        for document in documents:
            writer.add(np.array(document, np.int64), [len(document)])


def test_layout_is_megatrons_byte_for_byte(tmp_path: Path) -> None:
    write(tmp_path / "d", [[1, 2], [3], [258, 5, 6]])
    index = (tmp_path / "d.idx").read_bytes()
    assert len(index) == 34 + 12 + 24 + 32 == 102
    assert index == bytes.fromhex(
        "4d4d4944494458 0000"  # MMIDIDX\0\0
        "0100000000000000"  # version
        "08"  # u16
        "0300000000000000 0400000000000000"  # sequences, document boundaries
        "02000000 01000000 03000000"  # lengths
        "0000000000000000 0400000000000000 0600000000000000"  # byte offsets
        "0000000000000000 0100000000000000 0200000000000000 0300000000000000"  # documents
    )
    assert (tmp_path / "d.bin").read_bytes() == bytes.fromhex("0100 0200 0300 0201 0500 0600")


def test_token_type_has_megatrons_bound() -> None:
    assert token_type(65499) is np.uint16
    assert token_type(65500) is np.int32


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 99_999), max_size=9), max_size=9), st.sampled_from([100_000]))
def test_reads_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], vocab_size: int
) -> None:
    prefix = tmp_path_factory.mktemp("indexed") / "with.dot"
    write(prefix, documents, vocab_size)
    tokens = IndexedTokens(prefix)
    assert [tokens[n].tolist() for n in range(len(tokens))] == documents
    assert tokens.tokens.tolist() == [token for document in documents for token in document]
    assert tokens.documents.tolist() == [len(document) for document in documents]


def test_a_document_may_be_several_sequences(tmp_path: Path) -> None:
    write(tmp_path / "d", [[1], [2, 3], [4, 5, 6], [7, 8, 9, 10]])
    index, boundaries = bytearray((tmp_path / "d.idx").read_bytes()), 34 + 12 * 4
    struct.pack_into("<Q", index, 26, 3)

    def opened(*edges: int) -> IndexedTokens:
        struct.pack_into("<3q", index, boundaries, *edges)
        (tmp_path / "d.idx").write_bytes(index)
        return IndexedTokens(tmp_path / "d")

    assert opened(0, 2, 4).documents.tolist() == [3, 7]
    assert opened(0, 0, 4).documents.tolist() == [0, 10]
    for edges in ((0, 5, 4), (1, 2, 4), (0, 2, 3)):
        with pytest.raises(DataError, match="its documents are not made of its 4 sequences"):
            opened(*edges)


def test_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="document 1 or one after it holds ids from 7 to 66000, which uint16"):
        write(tmp_path / "d", [[1], [66000, 7]])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("d.idx", b"nonsense", "no Megatron index"),
        ("d.idx", None, "missing"),
        ("d.bin", b"\0", "has 1 bytes, its index asks for 6"),
    ],
)
def test_broken_pairs_are_refused(tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    write(tmp_path / "d", [[1, 2], [3]])
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=message):
        IndexedTokens(tmp_path / "d")


def test_cut_off_index_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "d", [[1, 2], [3]])
    index = (tmp_path / "d.idx").read_bytes()
    (tmp_path / "d.idx").write_bytes(index[:-1])
    with pytest.raises(DataError, match="cut off"):
        IndexedTokens(tmp_path / "d")


def test_labels_hold_what_is_not_learnt(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "d", np.int32) as writer:
        writer.add(np.array([-100, 7, -100], np.int32), [2, 1])
    tokens = IndexedTokens(tmp_path / "d")
    assert [tokens[n].tolist() for n in range(len(tokens))] == [[-100, 7], [-100]]
