"""Prepared files to batches, whoever wrote them: `tandem data prepare`, Megatron or ModelLink.

Nothing is copied until a batch is asked for.
"""

from __future__ import annotations

from pathlib import Path

from tandem.errors import DataError
from tandem.training.data.batches import TokenBatches
from tandem.training.data.conversation_batches import ConversationBatches
from tandem.training.data.indexed import IndexedTokens, paths_of
from tandem.training.data.output import packed_prefix, text_prefix


def open_texts(prefix: Path, *, seq_length: int, seed: int, apart: bool = False) -> TokenBatches:
    """Batches of texts.

    Args:
        prefix: As given to `prepare`.
        seq_length: T.
        seed: Of the order.
        apart: Whether a token sees its own document alone.

    Raises:
        DataError: There are no such files, they are damaged, or too few tokens for `seq_length`.
    """
    texts = _opened(text_prefix(prefix), "texts to pretrain on")
    return TokenBatches(texts.tokens, seq_length, seed, texts.documents if apart else None)


def open_conversations(prefix: Path, *, seq_length: int, seed: int, pad: int, pack: bool = True) -> ConversationBatches:
    """Batches of conversations.

    Args:
        prefix: As given to `prepare`.
        seq_length: T.
        seed: Of the order.
        pad: Token id behind the last conversation of a row.
        pack: Several in a row, or one.

    Raises:
        DataError: There are no such files, they are damaged, or a conversation is longer than `seq_length`.
    """
    ids = _opened(packed_prefix(prefix, "input_ids"), "conversations to fine-tune on")
    return ConversationBatches(ids, IndexedTokens(packed_prefix(prefix, "labels")), seq_length, pad, seed, pack=pack)


def _opened(pair: Path, what: str) -> IndexedTokens:
    index, _ = paths_of(pair)
    if not index.exists():
        raise DataError(f"{index}: is missing, so there are no {what}; prepare them, or give another prefix")
    return IndexedTokens(pair)
