"""Prepared files to batches; which stage they are for is seen from the files, whoever wrote them."""

from __future__ import annotations

from pathlib import Path

from tandem.errors import DataError
from tandem.training.data.batches import TokenBatches
from tandem.training.data.conversation_batches import ConversationBatches
from tandem.training.data.indexed import IndexedTokens, paths_of
from tandem.training.data.output import packed_prefix, text_prefix


def open_batches(
    prefix: Path, *, seq_length: int, seed: int, pad: int, pack: bool = True, documents_apart: bool = False
) -> TokenBatches | ConversationBatches:
    """Batches of what `tandem data prepare`, Megatron or ModelLink wrote under a prefix.

    Nothing is copied until a batch is asked for.

    Args:
        prefix: As given to `prepare`; or of one `.bin/.idx` pair of texts, without its suffix; or a folder that holds
            the files of one prefix.
        seq_length: T.
        seed: Of the order.
        pad: Token id behind the last conversation of a row.
        pack: Conversations: several in a row, or one.
        documents_apart: Texts: whether a token sees its own document alone.

    Raises:
        DataError: There are no such files, they are damaged, or they do not fit `seq_length`.
    """
    prefix = _only_prefix(prefix) if prefix.is_dir() else prefix
    ids = packed_prefix(prefix, "input_ids")
    texts = prefix if _there(prefix) else text_prefix(prefix)
    if _there(ids) and _there(texts):
        raise DataError(f"{prefix}: holds both texts and conversations; remove the ones that are not meant")
    if _there(ids):
        labels = IndexedTokens(packed_prefix(prefix, "labels"))
        return ConversationBatches(IndexedTokens(ids), labels, seq_length, pad, seed, pack=pack)
    if not _there(texts):
        raise DataError(f"{prefix}: holds no prepared data; run `tandem data prepare` with --out {prefix}")
    documents = IndexedTokens(texts)
    return TokenBatches(documents.tokens, seq_length, seed, documents.lengths if documents_apart else None)


def _only_prefix(folder: Path) -> Path:
    """What the names of a folder's prepared files begin with."""
    endings = ("_text_document.idx", "_packed_input_ids_document.idx")
    found = {path.name.removesuffix(end) for end in endings for path in folder.glob(f"*{end}")}
    if len(found) != 1:
        said = ", ".join(sorted(found)) or "none"
        raise DataError(
            f"{folder}: holds prepared data under other than one prefix ({said}); name the one that is meant"
        )
    return folder / found.pop()


def _there(prefix: Path) -> bool:
    return paths_of(prefix)[0].exists()
