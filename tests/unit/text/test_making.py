"""Small tokenizers: the files and names of the originals, repeatable, quick, and as large as asked."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tandem.errors import UsageError
from tandem.text.making.writer import KINDS, write_tokenizer
from tandem.text.tokenizer import Tokenizer

FILES = {"qwen": ("qwen.tiktoken",), "glm4": ("tokenizer.model",), "chatglm3": ("tokenizer.model",)}
FILES |= dict.fromkeys(("llama2", "mistral", "yi", "baichuan2"), ("tokenizer.model", "special_tokens_map.json"))
FILES |= dict.fromkeys(("llama3", "qwen2", "deepseek", "glm"), ("tokenizer.json", "special_tokens_map.json"))
CLASSES = {
    "llama3": "PreTrainedTokenizerFast", "qwen2": "Qwen2Tokenizer", "deepseek": "LlamaTokenizerFast",
    "glm": "PreTrainedTokenizerFast", "llama2": "LlamaTokenizer", "mistral": "LlamaTokenizer", "yi": "LlamaTokenizer",
    "chatglm3": "ChatGLMTokenizer", "baichuan2": "BaichuanTokenizer", "qwen": "QWenTokenizer",
    "glm4": "ChatGLM4Tokenizer",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_the_originals_and_repeatable(made, kind: str, tmp_path: Path) -> None:
    began = time.monotonic()
    ids = write_tokenizer(kind, tmp_path / "again", 1024)
    assert time.monotonic() - began < 10
    folder, first = made[kind]
    assert ids == first
    assert {path.name for path in (tmp_path / "again").iterdir()} == {*FILES[kind], "tokenizer_config.json"}
    for name in (*FILES[kind], "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == CLASSES[kind]
    assert ("auto_map" in settings) == (kind in ("chatglm3", "baichuan2", "qwen", "glm4"))
    assert "chat_template" not in settings


ENDS = {
    "llama3": ("<|begin_of_text|>", ["<|eot_id|>", "<|end_of_text|>"], None),
    "qwen2": (None, ["<|im_end|>", "<|endoftext|>"], "<|endoftext|>"),
    "deepseek": ("<｜begin▁of▁sentence｜>", ["<｜end▁of▁sentence｜>"], "<｜▁pad▁｜>"),
    "glm": (None, ["<|endoftext|>", "<|user|>", "<|observation|>"], "<|endoftext|>"),
    "llama2": ("<s>", ["</s>"], None),
    "mistral": ("<s>", ["</s>"], None),
    "yi": ("<|startoftext|>", ["<|im_end|>", "<|endoftext|>"], "<unk>"),
    "chatglm3": ("<s>", ["</s>"], "<unk>"),
    "baichuan2": ("<s>", ["</s>"], "<unk>"),
    "qwen": (None, ["<|im_end|>", "<|endoftext|>"], "<|endoftext|>"),
    "glm4": (None, ["<|endoftext|>", "<|user|>", "<|observation|>"], "<|endoftext|>"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_tokenizer(made, kind: str) -> None:
    tokenizer, ids = Tokenizer.from_folder(made[kind][0]), made[kind][1]
    bos, eos, pad = ENDS[kind]
    assert ids.bos == (None if bos is None else tokenizer.id_of(bos))
    assert list(ids.eos) == [tokenizer.id_of(token) for token in eos]
    assert ids.pad == (None if pad is None else tokenizer.id_of(pad))
    if kind == "baichuan2":
        assert (ids.user, ids.assistant) == (tokenizer.id_of("<reserved_106>"), tokenizer.id_of("<reserved_107>"))
    else:
        assert (ids.user, ids.assistant) == (None, None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [600, 1500])
def test_sizes_are_kept(kind: str, size: int, tmp_path: Path) -> None:
    ids = write_tokenizer(kind, tmp_path, size)
    assert ids.size == Tokenizer.from_folder(tmp_path).vocab_size == size


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_without_room_are_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="vocab_size"):
        write_tokenizer(kind, tmp_path, 250)


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'gpt' is unknown; use one of llama3, qwen2"):
        write_tokenizer("gpt", tmp_path, 1024)
