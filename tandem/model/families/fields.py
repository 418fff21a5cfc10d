"""Reading the fields of a `config.json`, each checked and named when it is wrong."""

from __future__ import annotations

from typing import Any

from tandem.errors import ModelFolderError

LARGEST = 1e30
"""No field that is a number comes near it."""
MOST = 2**31
"""Nor one that counts something."""
REMEDIES = {"quantization_config": "give unquantised weights"}
"""What is said of a field that cannot have a value, where leaving it out would not help."""


class Fields:
    """One `config.json`.

    Args:
        fields: Its content.
        where: Its path, for messages.
    """

    def __init__(self, fields: dict[str, Any], where: str) -> None:
        self._fields = fields
        self.where = where

    def get(self, name: str) -> Any:
        """A field as it stands; None where it is missing or null."""
        return self._fields.get(name)

    def null(self, name: str) -> bool:
        """Whether a field is there and null; for those where that is not the default."""
        return name in self._fields and self._fields[name] is None

    def size(self, name: str, default: int | None = None, least: int = 1) -> int:
        """A whole number from `least` up."""
        value = default if self.get(name) is None else self.get(name)
        if type(value) is not int or not least <= value <= MOST:
            raise self._wrong(name, value, f"a whole number from {least} to {MOST}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number."""
        value = default if self.get(name) is None else self.get(name)
        if type(value) not in (int, float) or not 0 < value < LARGEST:  # type: ignore[operator]
            raise self._wrong(name, value, f"a number above 0 and below {LARGEST:g}")
        return float(value)  # type: ignore[arg-type]

    def coefficient(self, name: str, default: float = 0.0) -> float:
        """A number that is not negative."""
        value = default if self.get(name) is None else self.get(name)
        return 0.0 if type(value) in (int, float) and value == 0 else self.number(name, default)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = default if self.get(name) is None else self.get(name)
        if type(value) is not bool:
            raise self._wrong(name, value, "true or false")
        return value

    def part(self, name: str) -> Fields:
        """A field that is an object; an empty one where it is missing or null."""
        value = {} if self.get(name) is None else self.get(name)
        if not isinstance(value, dict):
            raise self._wrong(name, value, "an object or null")
        return Fields(value, f"{self.where}: {name}")

    def holds_parts(self) -> bool:
        """Whether some field is itself an object."""
        return any(isinstance(value, dict) for value in self._fields.values())

    def only(self, supported: dict[str, tuple[object, ...]]) -> None:
        """Refuse fields that change the computation and have a value the decoder does not compute.

        A missing field counts as None, so None stands among the values wherever the family's own default is supported.
        """
        for name, values in supported.items():
            if self.get(name) not in values:
                first = next((value for value in values if value is not None), None)
                instead = REMEDIES.get(name, "leave it out") if first is None else f"supported: {first!r}"
                raise ModelFolderError(f"{self.where}: {name} = {self.get(name)!r:.40} is not supported; {instead}")

    def _wrong(self, name: str, value: object, expected: str) -> ModelFolderError:
        state = "is missing" if value is None else f"is {value!r:.40}"
        return ModelFolderError(f"{self.where}: {name} {state}; expected {expected}")
