"""One file per model family: how its `config.json` and its tensor names translate to ours, both ways."""

from __future__ import annotations

from typing import Any

from tandem.errors import ModelFolderError
from tandem.model.families.family import Family
from tandem.model.families.llama import LLAMA

FAMILIES: dict[str, Family] = {LLAMA.name: LLAMA}


def family_of(hf_config: dict[str, Any], where: str) -> Family:
    """The family whose checkpoints have this `config.json`.

    Raises:
        ModelFolderError: The architecture is not one of ours.
    """
    architectures = hf_config.get("architectures") or []
    for family in FAMILIES.values():
        if family.architecture in architectures or (not architectures and hf_config.get("model_type") == family.name):
            return family
    known = ", ".join(family.architecture for family in FAMILIES.values())
    named = ", ".join(map(str, architectures)) or hf_config.get("model_type") or "none"
    raise ModelFolderError(f"{where}: architecture {named} is not supported; known: {known}")
