"""Random folders are written only where disk and memory have room for them."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from tokenizers import Tokenizer as Library
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tandem.catalogue.arithmetic import weight_bytes
from tandem.catalogue.config import MoE
from tandem.catalogue.models import MODELS
from tandem.catalogue.shrink import SmallShape, shrink
from tandem.errors import UsageError
from tandem.model import folder as model_folder
from tandem.model import fp8_folder
from tandem.model.random_folder import write_random_folder
from tandem.text.template import TemplateFormat
from tandem.text.tokenizer import Tokenizer


@pytest.mark.parametrize("short", [0, 1])
def test_the_largest_parameter_of_a_mixture_is_its_stacked_experts(
    short: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = shrink(MODELS["mixtral-8x7b"].config)
    assert isinstance(config.feed_forward, MoE)
    config = replace(config, feed_forward=replace(config.feed_forward, size=256))
    experts = 8 * 256 * config.hidden_size
    assert experts > config.vocab_size * config.hidden_size
    available = weight_bytes(config, "bfloat16") + 4 * experts - short
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
    if short:
        with pytest.raises(UsageError, match=r"need [\d.]+ MiB, the memory has .* free; free some of it"):
            write_random_folder(config, "mistral", tmp_path / "out", dtype="bfloat16", seed=0)
    else:
        write_random_folder(config, "mistral", tmp_path / "out", dtype="bfloat16", seed=0)
    assert (tmp_path / "out").exists() == (not short)


def test_the_disk_must_have_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = shrink(MODELS["mixtral-8x7b"].config)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=weight_bytes(config, "bfloat16") - 1))
    with pytest.raises(UsageError, match=r"need [\d.]+ KiB, the disk of .* has .* KiB free; free some of it"):
        write_random_folder(config, "mistral", tmp_path / "out", dtype="bfloat16", seed=0)


def of_transformers(folder: Path, settings: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Transformers would need another package to open a SentencePiece model; templates do without its pieces."""
    if (folder / "tokenizer.json").exists():
        return AutoTokenizer.from_pretrained(folder)
    named = {name: settings[name] for name in ("bos_token", "eos_token", "chat_template")}
    return PreTrainedTokenizerFast(tokenizer_object=Library(BPE()), **named)


@pytest.mark.parametrize(
    "name",
    ["llama2-7b", "llama3-8b", "llama3.1-8b", "llama3.2-1b", "qwen1.5-7b", "qwen2-0.5b", "qwen2.5-7b", "mistral-7b",
     "mixtral-8x7b", "yi-6b", "deepseek-v3"],
)  # fmt: skip
def test_families_that_publish_a_chat_template_bring_it(name: str, tmp_path: Path) -> None:
    config = replace(shrink(MODELS[name].config, SmallShape(layers=2)), max_position=777)
    write_random_folder(config, MODELS[name].tokenizer, tmp_path / "m", dtype="bfloat16", seed=0)
    settings = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 777
    chat, theirs = Tokenizer.from_folder(tmp_path / "m").chat, of_transformers(tmp_path / "m", settings)
    assert isinstance(chat, TemplateFormat)
    system, *turns = (
        {"role": role, "content": f" {role}s\n words {at} "}
        for at, role in enumerate(("system", "user", "assistant", "user"))
    )
    for messages in ([system, *turns], turns, turns[:2]):
        for opens in (True, False):
            text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=opens)
            assert chat.render(messages, add_generation_prompt=opens) == text
    # The built-in format, which the folder would have without it, says the same.
    (tmp_path / "m" / "tokenizer_config.json").write_text(
        json.dumps({key: value for key, value in settings.items() if key != "chat_template"})
    )
    built_in = Tokenizer.from_folder(tmp_path / "m").chat
    assert isinstance(built_in, TemplateFormat)
    assert built_in.render([system, *turns]) == chat.render([system, *turns])
    assert built_in.end_token_ids == chat.end_token_ids


@pytest.mark.parametrize("name", ["qwen-7b", "glm3-6b", "glm4-9b", "baichuan2-13b"])
def test_families_whose_chat_format_is_python_bring_none(name: str, tmp_path: Path) -> None:
    write_random_folder(
        shrink(MODELS[name].config, SmallShape(layers=2)), MODELS[name].tokenizer, tmp_path / "m", dtype="bfloat16",
        seed=0,
    )  # fmt: skip
    assert "chat_template" not in json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    assert Tokenizer.from_folder(tmp_path / "m").chat is not None


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_is_none_is_refused_by_name(seed: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"--seed {seed}: give a number from 0 to {2**64 - 1}"):
        write_random_folder(shrink(MODELS["yi-6b"].config), "yi", tmp_path / "m", dtype="bfloat16", seed=seed)


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize(
    ("number", "advice"), [(errno.ENOSPC, "free disk space"), (errno.EROFS, "choose another folder")]
)
def test_only_a_full_disk_wants_space(
    number: int, advice: str, fp8: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "said the system")

    monkeypatch.setattr(fp8_folder if fp8 else model_folder, "whole_folder", refuse)
    config = shrink(MODELS["deepseek-v3"].config, SmallShape(layers=2))
    with pytest.raises(UsageError, match=rf"m: cannot be written \(said the system\); {advice}"):
        write_random_folder(config, "deepseek", tmp_path / "m", dtype="bfloat16", seed=0, fp8=fp8)
    assert list(tmp_path.iterdir()) == []
