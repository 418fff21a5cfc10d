"""A tied model whose files hold a head all the same: it must be a copy of the embedding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from tandem.catalogue.config import ModelConfig
from tandem.errors import ModelFolderError
from tandem.model.families.family import Family, Rows
from tandem.model.weights.stored import StoredTensor

CHUNK = 4 << 20
"""Bytes compared at once."""


def differing_head(stored: Mapping[str, StoredTensor], family: Family, config: ModelConfig) -> str | None:
    """What is wrong with the head in the files of a tied model, as one phrase; None where nothing is.

    Args:
        stored: The folder's tensors; a head among them is read and compared.
        family: Whose layout they are in.
        config: The model.

    Raises:
        ModelFolderError: A file cannot be read.
    """
    if not config.tied_embeddings:
        return None
    names = {rows: theirs for theirs, rows in family.tensors(replace(config, tied_embeddings=False)).items()}
    embedding, head = names[(Rows("embedding.weight"),)], names[(Rows("head.weight"),)]
    if head not in stored or embedding not in stored or _same(stored[head], stored[embedding]):
        return None
    return f"{head} is not {embedding}, although tie_word_embeddings is true"


def _same(one: StoredTensor, other: StoredTensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return all(first == second for first, second in zip(_chunks(one), _chunks(other), strict=True))


def _chunks(tensor: StoredTensor) -> Iterator[bytes]:
    try:
        with tensor.path.open("rb") as file:
            file.seek(tensor.offset)
            for begin in range(0, tensor.size, CHUNK):
                yield file.read(min(CHUNK, tensor.size - begin))
    except OSError as error:
        raise ModelFolderError(f"{tensor.path}: cannot be read ({error.strerror}); copy it again") from None
