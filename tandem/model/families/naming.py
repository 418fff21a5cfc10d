"""How a checkpoint spells our parameters' names.

Parameters that a checkpoint fuses have one name in it and lie one below the other in our order: q, k, v, and gate, up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tandem.catalogue.config import ModelConfig
from tandem.catalogue.shapes import parameter_shapes
from tandem.model.families.family import Rows, TensorMap


@dataclass(frozen=True, kw_only=True)
class Naming:
    """Our names -> a checkpoint's. Both without `.weight` and `.bias`, where a name that has these is not given."""

    outer: dict[str, str]
    """What stands outside of the layers."""
    layers: str
    """What precedes a layer's number."""
    inner: dict[str, str]
    """What stands in a layer; `{expert}` is an expert's number."""

    def tensors(self, config: ModelConfig) -> TensorMap:
        """Every tensor of a checkpoint, in the order of our parameters."""
        tensors: dict[str, list[Rows]] = {}
        for ours, shape in parameter_shapes(config).items():
            for rows in _parts(ours, shape[0]):
                tensors.setdefault(self._theirs(rows), []).append(rows)
        return {theirs: tuple(rows) for theirs, rows in tensors.items()}

    def _theirs(self, rows: Rows) -> str:
        if not rows.name.startswith("layers."):
            return _spelled(rows.name, self.outer)
        _, layer, name = rows.name.split(".", 2)
        return f"{self.layers}.{layer}.{_spelled(name, self.inner)}".replace("{expert}", str(rows.expert))


def _parts(ours: str, count: int) -> Iterator[Rows]:
    """A parameter, or each expert of a stacked one."""
    if ".experts." in ours:
        yield from (Rows(ours, expert) for expert in range(count))
    else:
        yield Rows(ours)


def _spelled(ours: str, names: dict[str, str]) -> str:
    if ours in names:
        return names[ours]
    stem, _, end = ours.rpartition(".")
    return f"{names[stem]}.{end}"
