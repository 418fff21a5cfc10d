"""`.bin/.idx` beside megatron-core's own class, both ways; extra `megatron`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tandem.training.data.indexed import IndexedTokens, IndexedWriter

DOCUMENTS = [[1, 2, 3], [], [65000, 0], list(range(300))]
LABELS = [[-100, -100, 3], [], [-100, 0], [-100, *range(299)]]


@pytest.fixture(scope="module")
def megatron() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Transformer Engine and Apex, which are not there
        return pytest.importorskip("megatron.core.datasets.indexed_dataset", reason="extra `megatron` is not installed")


@pytest.mark.parametrize(("dtype", "documents"), [(np.uint16, DOCUMENTS), (np.int32, DOCUMENTS), (np.int32, LABELS)])
def test_both_ways_and_byte_for_byte(megatron: Any, tmp_path: Path, dtype: Any, documents: list[list[int]]) -> None:
    with IndexedWriter(tmp_path / "ours", dtype) as writer:
        for document in documents:
            writer.add(np.array(document, np.int64), [len(document)])
    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype)
    for document in documents:
        builder.add_item(torch.tensor(document, dtype=torch.int64))
        builder.end_document()
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"ours{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()
    theirs = megatron.IndexedDataset(str(tmp_path / "ours"), mmap=True)
    assert [theirs[n].tolist() for n in range(len(theirs))] == documents
    ours = IndexedTokens(tmp_path / "theirs")
    assert [ours[n].tolist() for n in range(len(ours))] == documents


def test_their_documents_of_several_sequences(megatron: Any, tmp_path: Path) -> None:
    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "d.bin"), dtype=np.uint16)
    for document in ([[1, 2], [3]], [[4, 5, 6]]):
        for sentence in document:
            builder.add_item(torch.tensor(sentence))
        builder.end_document()
    builder.finalize(str(tmp_path / "d.idx"))
    assert IndexedTokens(tmp_path / "d").documents.tolist() == [3, 3]
