"""The catalogue and the families say the same: what is written to `config.json` reads back as it was."""

from __future__ import annotations

import pytest

from tandem.catalogue.config import ModelConfig
from tandem.catalogue.models import MODELS
from tandem.catalogue.shrink import shrink
from tandem.model.families import FAMILIES, family_of
from tandem.text.making.writer import KINDS


@pytest.mark.parametrize("small", [False, True], ids=["full", "small"])
@pytest.mark.parametrize("name", MODELS)
def test_config_json_and_back(name: str, small: bool) -> None:
    config: ModelConfig = shrink(MODELS[name].config) if small else MODELS[name].config
    family = FAMILIES[config.family]
    fields = {"architectures": [family.architectures[0]], "model_type": family.model_type}
    fields |= family.write_config(config)
    assert family_of(fields, name) is family
    assert family.read_config(fields, name) == config


@pytest.mark.parametrize("name", MODELS)
def test_there_is_a_tokenizer_of_its_kind(name: str) -> None:
    assert MODELS[name].tokenizer in KINDS
