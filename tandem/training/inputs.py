"""What a stage's output depends on, as plain fields: equal inputs, equal output, so it can be used again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tandem.errors import DataError
from tandem.files import json_bytes, read_json_object, write_whole

Inputs = dict[str, Any]
"""JSON fields, nested where that reads better."""

MARK = "stage.json"
"""Written into a stage's folder last: the inputs its whole output was made from."""


def digest(inputs: Inputs) -> str:
    """SHA-256 over the inputs."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def differences(made_from: Inputs, asked_for: Inputs, most: int = 4) -> str:
    """The fields that differ, each with both values, for a message; empty if none does."""
    old, new = dict(_flat(made_from)), dict(_flat(asked_for))
    names = [name for name in new | old if old.get(name) != new.get(name)]
    shown = [f"{name} was {_short(old.get(name))}, now {_short(new.get(name))}" for name in names[:most]]
    return "; ".join(shown + [f"{len(names) - most} more"] * (len(names) > most))


def read_mark(folder: Path) -> Inputs | None:
    """The inputs a finished stage was made from; None if it is not finished.

    Raises:
        DataError: The mark is broken.
    """
    path = folder / MARK
    return read_json_object(path, DataError) if path.exists() else None


def write_mark(folder: Path, inputs: Inputs) -> None:
    """Mark the stage as finished."""
    write_whole(folder / MARK, json_bytes(inputs))


def _flat(inputs: Inputs, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in inputs.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 16 else text[:12] + "…"
