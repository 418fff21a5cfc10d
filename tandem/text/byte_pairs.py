"""Byte-level BPE, trained and written: merges of bytes, learnt from texts, every byte a token of its own at first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from tandem.errors import UsageError
from tandem.files import json_bytes


def train_byte_pairs(
    texts: Iterable[str],
    vocab_size: int,
    *,
    first_tokens: Sequence[str] = (),
    words: Sequence[str] = (),
    composed: bool = False,
) -> tokenizers.Tokenizer:
    """Train a tokenizer of exactly `vocab_size` ids; the result depends on the arguments alone.

    Args:
        texts: Documents.
        vocab_size: Number of ids, `first_tokens` included.
        first_tokens: Special tokens, which take the ids from 0.
        words: Expressions that split a text into words, one after the other; without any, GPT-2's.
        composed: Whether texts are brought into Unicode's composed form (NFC) first.

    Raises:
        UsageError: `vocab_size` has no room for the bytes, or the texts are too few to fill it.
    """
    if vocab_size < (least := len(first_tokens) + 256):
        raise UsageError(f"vocab_size {vocab_size}: a byte-level tokenizer needs at least {least}; raise it")
    backend = tokenizers.Tokenizer(models.BPE())
    if composed:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _splitter(words)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(first_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if (size := backend.get_vocab_size(with_added_tokens=True)) != vocab_size:
        raise UsageError(f"vocab_size {vocab_size}: the texts hold only {size} tokens; lower it or add texts")
    return backend


def write_byte_pairs(
    folder: Path, backend: tokenizers.Tokenizer, settings: dict[str, Any], named: Mapping[str, str | None]
) -> None:
    """Write the files that Hugging Face has for a tokenizer.

    Args:
        folder: Receives `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`.
        backend: The trained tokenizer.
        settings: Content of `tokenizer_config.json`.
        named: `bos_token` and the like; None where there is none.
    """
    (folder / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
    (folder / "tokenizer_config.json").write_bytes(json_bytes(settings))
    tokens = {name: token for name, token in named.items() if token is not None}
    (folder / "special_tokens_map.json").write_bytes(json_bytes(tokens))


def _splitter(words: Sequence[str]) -> pre_tokenizers.PreTokenizer:
    if not words:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    splits = [pre_tokenizers.Split(tokenizers.Regex(expression), "isolated") for expression in words]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
