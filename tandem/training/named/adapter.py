"""The adapter, in PEFT's format, that a run of LoRA goes on training in place of a new one."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

from tandem.catalogue.config import ModelConfig
from tandem.errors import ModelFolderError, RecipeError
from tandem.files import read_bytes
from tandem.training.adapters.layers import Strength
from tandem.training.adapters.lora import strength_of
from tandem.training.adapters.peft_config import FILE
from tandem.training.adapters.peft_reading import TENSORS, Adapter, read_adapter
from tandem.training.adapters.targets import resolved, targets_for
from tandem.training.settings.config import LoraConfig


def adapter_at(folder: Path, config: ModelConfig, lora: LoraConfig) -> Adapter:
    """Read an adapter that is what a run's settings ask for: the same matrices, ranks and scales.

    Raises:
        ModelFolderError: As `read_adapter`.
        RecipeError: The settings ask for another, or no settings can ask for it.
    """
    adapter = read_adapter(folder, config)
    held = {name: one.strength for name, one in adapter.factors.items()}
    if held.keys() != set(resolved(config, lora)) or not all(_alike(one, strength_of(lora)) for one in held.values()):
        raise RecipeError(f"{folder}: its adapter is not the one that the run would train; {_way_out(config, held)}")
    return adapter


def identity(folder: Path) -> str:
    """SHA-256 over all that an adapter folder says.

    Raises:
        ModelFolderError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for name in (FILE, TENSORS):
        digest.update(hashlib.sha256(read_bytes(folder / name, ModelFolderError)).digest())
    return digest.hexdigest()


def _alike(one: Strength, other: Strength) -> bool:
    return one.rank == other.rank and math.isclose(one.scale, other.scale)


def _way_out(config: ModelConfig, held: dict[str, Strength]) -> str:
    one = next(iter(held.values()))
    if not all(_alike(one, other) for other in held.values()):
        return "its matrices differ in rank or scale, which settings cannot say; merge it (`tandem lora merge`) first"
    targets = ", ".join(targets_for(config, held.keys()))
    settings = (f"rank={one.rank}", f"alpha={one.alpha:g}", f"rslora={str(one.rslora).lower()}")
    return f"give {' '.join(f'--set lora.{one}' for one in settings)} --set 'lora.targets=[{targets}]'"
