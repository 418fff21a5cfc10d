"""The catalogue and the families say the same: what is written to `config.json` reads back as it was."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tandem.catalogue.config import ModelConfig
from tandem.catalogue.models import MODELS
from tandem.catalogue.named import TokenizerKind
from tandem.catalogue.shrink import shrink
from tandem.errors import RequestError
from tandem.model.families import FAMILIES, family_of
from tandem.text.making.writer import KINDS, write_tokenizer
from tandem.text.piecewise import BaichuanChat, GlmChat, QwenChat
from tandem.text.template import TemplateFormat
from tandem.text.tokenizer import Tokenizer

TURN = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be short."}
MARKS = {
    "<|im_start|>": "chatml",
    "<|start_header_id|>": "llama3",
    "<｜User｜>": "deepseek",
    "<<SYS>>": "llama2",
    "[INST]": "mistral",
}
"""What only one format writes; of the last two, which both have [INST], the first also writes the other."""


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


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_chats_as_the_catalogue_says(name: str) -> None:
    assert spoken(MODELS[name].config.family, MODELS[name].tokenizer) == MODELS[name].chat


@cache
def spoken(family: str, kind: TokenizerKind) -> str:
    """The format that a folder of this family with small tokenizer files of this kind gets."""
    with TemporaryDirectory() as folder:
        write_tokenizer(kind, Path(folder), 1024)
        (Path(folder) / "config.json").write_text(json.dumps({"model_type": FAMILIES[family].model_type}))
        tokenizer = Tokenizer.from_folder(Path(folder))
    match tokenizer.chat:
        case QwenChat():
            return "chatml"
        case GlmChat():
            return "glm4" if tokenizer.id_of("<sop>") is not None else "chatglm3"
        case BaichuanChat():
            return "baichuan2"
        case TemplateFormat() as chat:
            text = rendered(chat)
            return next(format_ for mark, format_ in MARKS.items() if mark in text)
    raise AssertionError(tokenizer.chat)


def rendered(chat: TemplateFormat) -> str:
    try:
        return chat.render([SYSTEM, TURN])
    except RequestError:
        return chat.render([TURN])
