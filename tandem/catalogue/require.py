"""Checks of a model configuration: one line that says what does not hold."""

from __future__ import annotations

from tandem.errors import ModelFolderError


def require(holds: bool, message: str) -> None:
    """Refuse a configuration.

    Raises:
        ModelFolderError: `holds` is false.
    """
    if not holds:
        raise ModelFolderError(f"model configuration: {message}")
