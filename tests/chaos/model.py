"""The model folder that the tests serve, for runs without pytest."""

from __future__ import annotations

from pathlib import Path

import conftest


class Folders:
    """Stands for pytest's factory of temporary folders."""

    def __init__(self, base: Path) -> None:
        self._base = base

    def mktemp(self, name: str) -> Path:
        made = self._base / name
        made.mkdir()
        return made


def write_model(base: Path) -> Path:
    """Write it under `base`."""
    return conftest.tiny_model.__wrapped__(Folders(base))
