"""One file per model family: how its `config.json` and its tensor names translate to ours, both ways. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tandem.catalogue.config import ModelConfig
from tandem.errors import ConfigurationError, ModelFolderError
from tandem.files import read_json_object
from tandem.model.families.baichuan import BAICHUAN
from tandem.model.families.chatglm import CHATGLM
from tandem.model.families.deepseek_v3 import DEEPSEEK_V3
from tandem.model.families.family import Family
from tandem.model.families.glm import GLM
from tandem.model.families.llama import LLAMA
from tandem.model.families.mistral import MISTRAL
from tandem.model.families.mixtral import MIXTRAL
from tandem.model.families.qwen import QWEN
from tandem.model.families.qwen2 import QWEN2
from tandem.model.weights.stored import printable

FAMILIES: dict[str, Family] = {
    family.name: family for family in (LLAMA, MISTRAL, MIXTRAL, QWEN, QWEN2, CHATGLM, GLM, BAICHUAN, DEEPSEEK_V3)
}


def read_config(folder: Path) -> ModelConfig:
    """The configuration of a model folder, without its weights.

    Raises:
        ModelFolderError: The folder or its `config.json` is missing, broken or of an unsupported architecture.
    """
    return translate(folder)[1]


def translate(folder: Path) -> tuple[Family, ModelConfig, dict[str, Any]]:
    """The family of a model folder, its configuration, and its `config.json` as it stands; raises as `read_config`."""
    path = folder / "config.json"
    if not folder.is_dir():
        raise ModelFolderError(f"{folder}: no such model folder; give a folder with config.json and *.safetensors")
    if not path.exists():
        raise ModelFolderError(f"{folder}: has no config.json; is it a Hugging Face model folder?")
    fields = read_json_object(path, ModelFolderError)
    return *understand(fields, str(path)), fields


def understand(fields: dict[str, Any], where: str) -> tuple[Family, ModelConfig]:
    """The family of a `config.json` and the configuration it describes.

    Raises:
        ModelFolderError: It is not supported, or its numbers contradict each other; the message begins with `where`.
    """
    family = family_of(fields, where)
    try:
        return family, family.read_config(fields, where)
    except ConfigurationError as error:
        raise ModelFolderError(f"{where}: {error}; correct the file or copy it again") from None


def family_of(hf_config: dict[str, Any], where: str) -> Family:
    """The family whose checkpoints have this `config.json`.

    Raises:
        ModelFolderError: The architecture is not one of ours.
    """
    architectures = hf_config.get("architectures") or []
    if not isinstance(architectures, list):
        raise ModelFolderError(f"{where}: architectures is {architectures!r:.40}; expected a list of names")
    for family in FAMILIES.values():
        typed = not architectures and hf_config.get("model_type") == family.model_type
        if typed or not set(family.architectures).isdisjoint(map(str, architectures)):
            return family
    known = ", ".join(family.architectures[0] for family in FAMILIES.values())
    named = ", ".join(map(str, architectures)) or hf_config.get("model_type") or "none"
    raise ModelFolderError(f"{where}: architecture {printable(str(named))} is not supported; known: {known}")
