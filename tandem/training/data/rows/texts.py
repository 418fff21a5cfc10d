"""Rows of texts to pretrain on."""

from __future__ import annotations

from typing import Any

from tandem.errors import DataError


def text_of(row: Any, key: str) -> str:
    """The text of one row.

    Raises:
        DataError: There is none, or it is blank.
    """
    text = row.get(key) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise DataError(f"has no text `{key}`")
    if not text.strip():
        raise DataError("the text is empty")
    return text
