"""Which format a folder without a template gets, by its model type and its tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tandem.text.piecewise import BaichuanChat, GlmChat, QwenChat
from tandem.text.template import TemplateFormat
from tandem.text.tokenizer import Tokenizer

HI = [{"role": "user", "content": "hi"}]


def chat_of(made, tmp_path: Path, kind: str, model_type: str | None):
    folder = shutil.copytree(made[kind][0], tmp_path / f"{kind}-{model_type}")
    (folder / "config.json").unlink()
    if model_type is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return Tokenizer.from_folder(folder).chat


@pytest.mark.parametrize(
    ("kind", "model_type", "expected"),
    [
        ("qwen", "qwen", QwenChat), ("qwen", None, QwenChat),
        ("chatglm3", "chatglm", GlmChat), ("chatglm3", None, GlmChat),
        ("glm4", "chatglm", GlmChat), ("glm4", None, GlmChat), ("glm", "glm", GlmChat), ("glm", "glm4", GlmChat),
        ("baichuan2", "baichuan", BaichuanChat), ("baichuan2", None, BaichuanChat),
    ],
)  # fmt: skip
def test_piecewise_families(made, tmp_path: Path, kind, model_type, expected) -> None:
    assert type(chat_of(made, tmp_path, kind, model_type)) is expected


@pytest.mark.parametrize(
    ("kind", "model_type", "beginning"),
    [
        ("llama3", "llama", "<|begin_of_text|><|start_header"), ("llama3", None, "<|begin_of_text|><|start_header"),
        ("qwen2", "qwen2", "<|im_start|>system\nYou are"), ("qwen2", "qwen2_moe", "<|im_start|>system\nYou are"),
        ("qwen2", "llama", "<|im_start|>user"), ("yi", "llama", "<|im_start|>user"),
        ("deepseek", "deepseek_v3", "<｜begin▁of▁sentence｜><｜User｜>"),
        ("llama2", "llama", "<s>[INST] hi"), ("mistral", "mistral", "<s>[INST] hi"),
        ("mistral", "mixtral", "<s>[INST] hi"),
    ],
)  # fmt: skip
def test_families_with_a_template(made, tmp_path: Path, kind, model_type, beginning) -> None:
    chat = chat_of(made, tmp_path, kind, model_type)
    assert isinstance(chat, TemplateFormat)
    assert chat.render(HI).startswith(beginning)


@pytest.mark.parametrize(
    ("kind", "model_type"),
    [("llama2", None), ("llama2", "gemma"), ("glm", "llama"), ("llama3", "glm"), ("llama2", "qwen")],
)
def test_a_model_without_chat_tokens_has_no_format(made, tmp_path: Path, kind, model_type) -> None:
    assert chat_of(made, tmp_path, kind, model_type) is None


def test_our_own_byte_level_llama_is_not_taken_for_llama2(made, tmp_path: Path) -> None:
    from tandem.text.trainer import train_tokenizer

    train_tokenizer(["hello hello"] * 5, 265, tmp_path / "own", 64)
    (tmp_path / "own" / "config.json").write_text('{"model_type": "llama"}')
    path = tmp_path / "own" / "tokenizer_config.json"
    fields = json.loads(path.read_text())
    assert Tokenizer.from_folder(tmp_path / "own").chat is not None
    del fields["chat_template"]
    path.write_text(json.dumps(fields))
    assert Tokenizer.from_folder(tmp_path / "own").chat is None
