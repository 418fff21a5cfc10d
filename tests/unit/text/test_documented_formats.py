"""The conversations that the guide shows are what the formats encode."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tandem.text.tokenizer import Tokenizer

GUIDE = Path(__file__).parents[3] / "docs" / "tokenizers.md"
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
]
FORMATS = {
    "Qwen v1": ("qwen", "qwen"),
    "ChatGLM 3": ("chatglm3", "chatglm"),
    "GLM-4": ("glm4", "chatglm"),
    "Baichuan 2": ("baichuan2", "baichuan"),
    "DeepSeek V3": ("deepseek", "deepseek_v3"),
    "Llama 3": ("llama3", "llama"),
    "ChatML": ("yi", "llama"),
    "Mistral": ("mistral", "mistral"),
    "Llama 2": ("llama2", "llama"),
}
"""Name in the guide -> tokenizer kind, model type."""


def shown() -> dict[str, str]:
    section = GUIDE.read_text().partition("### What a conversation looks like")[2].split("```")[1]
    rows = (re.fullmatch(r"(.{12}) (.*)", line) for line in section.strip("\n").split("\n"))
    return {row[1].strip(): row[2].replace("\\n", "\n") for row in rows if row}


def test_the_guide_shows_every_format() -> None:
    assert shown().keys() == FORMATS.keys()


@pytest.mark.parametrize("name", FORMATS)
def test_shown_conversations_are_what_is_encoded(made, name: str, tmp_path: Path) -> None:
    kind, model_type = FORMATS[name]
    folder = shutil.copytree(made[kind][0], tmp_path / kind)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.chat is not None
    assert tokenizer.decode(tokenizer.chat.encode(TALK), skip_special=False) == shown()[name]
