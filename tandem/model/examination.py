"""Whether a model folder is whole: its configuration, and every tensor by name and shape. No torch, no weight is read.

Weights in torch's own files are the exception: their tables are torch's to open.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tandem.catalogue.config import ModelConfig
from tandem.catalogue.costs import costs_of
from tandem.catalogue.description import config_fields
from tandem.errors import ModelFolderError
from tandem.model.families import translate
from tandem.model.weights.files import stored_tensors
from tandem.model.weights.fit import fit


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What a folder holds."""

    config: ModelConfig
    tensors: int
    stored_bytes: int
    """Of all tensors, as they lie in the files."""
    faults: tuple[str, ...]
    """One phrase each: which tensor is missing, surplus or misshapen, or why the files cannot be read."""

    def as_json(self, context: int | None = None) -> dict[str, Any]:
        """All of it, with what the model costs at `context` tokens."""
        costs = asdict(costs_of(self.config, context))
        found = {"tensors": self.tensors, "stored_bytes": self.stored_bytes, "faults": list(self.faults)}
        return {"config": config_fields(self.config), "costs": costs, **found}


def examine(folder: Path) -> Examination:
    """Look at a model folder without loading it.

    Raises:
        ModelFolderError: The configuration is missing, broken or not supported; faults of the weights are returned.
    """
    family, config, fields = translate(folder)
    try:
        stored = stored_tensors(folder)
        faults = fit(stored, family, config, fields).faults
    except ModelFolderError as error:
        return Examination(config=config, tensors=0, stored_bytes=0, faults=(str(error),))
    size = sum(tensor.size for tensor in stored.values())
    return Examination(config=config, tensors=len(stored), stored_bytes=size, faults=faults)
