"""Writes a small tokenizer in one family's own files, as the family published them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tandem.errors import UsageError
from tandem.text.making.ids import TokenizerIds
from tandem.text.making.json_families import DEEPSEEK, GLM, LLAMA3, QWEN2, JsonFamily
from tandem.text.making.piece_families import BAICHUAN2, CHATGLM3, LLAMA2, MISTRAL, YI, PieceFamily
from tandem.text.making.rank_families import GLM4, QWEN, RankFamily

KINDS: Final[Mapping[str, JsonFamily | PieceFamily | RankFamily]] = MappingProxyType(
    {
        "llama3": LLAMA3,
        "qwen2": QWEN2,
        "deepseek": DEEPSEEK,
        "glm": GLM,
        "llama2": LLAMA2,
        "mistral": MISTRAL,
        "yi": YI,
        "chatglm3": CHATGLM3,
        "baichuan2": BAICHUAN2,
        "qwen": QWEN,
        "glm4": GLM4,
    }
)
"""Kind -> the family's files. `glm` is GLM-4 in Hugging Face's layout, `glm4` in its own, `qwen` the first version."""


def write_tokenizer(kind: str, folder: Path, vocab_size: int) -> TokenizerIds:
    """Train a tokenizer and write its files; the same arguments give the same files.

    None has a chat template, so that the built-in format applies.

    Args:
        kind: One of `KINDS`.
        folder: Receives the files; made where it is missing.
        vocab_size: Number of ids, special tokens included.

    Raises:
        UsageError: The kind is unknown, or `vocab_size` is too small for its tokens or too large for the texts.
    """
    if kind not in KINDS:
        raise UsageError(f"tokenizer kind {kind!r} is unknown; use one of {', '.join(KINDS)}")
    folder.mkdir(parents=True, exist_ok=True)
    return KINDS[kind].write(folder, vocab_size)
