"""A tokenizer folder of every family, made once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tandem.text.making.ids import TokenizerIds
from tandem.text.making.writer import KINDS, write_tokenizer

MODEL_TYPES = {
    "llama3": "llama", "qwen2": "qwen2", "deepseek": "deepseek_v3", "glm": "glm", "llama2": "llama", "yi": "llama",
    "mistral": "mistral", "chatglm3": "chatglm", "baichuan2": "baichuan", "qwen": "qwen", "glm4": "chatglm",
}  # fmt: skip

Make = Callable[..., tuple[Path, TokenizerIds]]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, TokenizerIds]]:
    """Kind -> a folder with its tokenizer and a config.json, and the ids in it. Not to be changed."""
    base = tmp_path_factory.mktemp("families")
    result = {}
    for kind in KINDS:
        ids = write_tokenizer(kind, base / kind, 1024)
        (base / kind / "config.json").write_text(json.dumps({"model_type": MODEL_TYPES[kind]}))
        result[kind] = (base / kind, ids)
    return result
