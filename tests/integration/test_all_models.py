"""Every named model, small: a random folder is written, examined, loaded, asked, exported and loaded again."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import torch

from tandem.catalogue.generation import read_generation_defaults
from tandem.catalogue.models import MODELS
from tandem.cli import run
from tandem.model.context import CausalContext
from tandem.model.decoder import Decoder
from tandem.model.folder import load, save
from tandem.text.tokenizer import Tokenizer, tokenizer_files

QUICK = {
    "llama3.1-8b",
    "qwen-14b",
    "qwen2-0.5b",
    "glm3-6b",
    "baichuan2-13b",
    "mistral-7b",
    "mixtral-8x7b",
    "deepseek-v3",
}
"""One of each family; the others run with ./check --full."""
PROMPT = Path(textwrap.__file__).read_text()[:600] + "你好，世界。"
NEW_TOKENS = 8
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.full) for n in MODELS])
def test_from_random_to_export(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, export = tmp_path / "random", tmp_path / "export"
    assert run(["model", "random", name, str(folder), "--tiny", "--dtype", "float32"]) == 0
    assert run(["model", "show", str(folder)]) == 0
    assert "every one that is needed" in capsys.readouterr().out

    prompt, decoder = Tokenizer.from_folder(folder).encode(PROMPT), load(folder, CPU)
    assert len(prompt) > 128  # beyond what a stretched position was trained on
    answer = greedy(decoder, prompt)
    assert len(set(answer)) > 2

    save(decoder, export, read_generation_defaults(folder), tokenizer_files(folder))
    assert run(["model", "show", str(export)]) == 0
    assert Tokenizer.from_folder(export).encode(PROMPT) == prompt
    assert read_generation_defaults(export) == read_generation_defaults(folder)
    assert greedy(load(export, CPU), prompt) == answer


@torch.no_grad()
def greedy(decoder: Decoder, prompt: list[int]) -> list[int]:
    tokens = list(prompt)
    for _ in range(NEW_TOKENS):
        logits = decoder(torch.tensor([tokens]), CausalContext(1, len(tokens), CPU))
        tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]
