"""What a caller needs to know of a tokenizer that was just written, to write the model's own files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TokenizerIds:
    """Ids for `config.json` and `generation_config.json`."""

    bos: int | None
    eos: tuple[int, ...]
    pad: int | None
    size: int
    """Number of ids, all of them used: 0 to `size` - 1."""
    user: int | None = None
    """Baichuan's `user_token_id`."""
    assistant: int | None = None
    """Baichuan's `assistant_token_id`."""
