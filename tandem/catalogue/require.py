"""Checks of a model configuration: a phrase that says what does not hold."""

from __future__ import annotations

from tandem.errors import ConfigurationError


def require(holds: bool, message: str) -> None:
    """Refuse a configuration.

    Raises:
        ConfigurationError: `holds` is false.
    """
    if not holds:
        raise ConfigurationError(message)
