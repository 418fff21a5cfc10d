"""`tandem lora merge`: a base folder and an adapter's become one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from adapters import TOKENS, adapted, lora_parameters, randomise, save_adapter
from parity.measure import CPU, whole
from safetensors.torch import load_file
from tiny import TINY, write_model

from tandem.cli import run
from tandem.model.folder import load, save
from tandem.model.random_weights import random_decoder
from tandem.text.tokenizer import Tokenizer
from tandem.training.adapters.lora import apply_lora
from tandem.training.settings.config import LoraConfig


@pytest.mark.parametrize(
    "family", ["llama", "mixtral", "deepseek_v3", "glm", "chatglm3", "qwen", "baichuan2-13b", "baichuan2-7b"]
)
def test_the_merged_folder_computes_what_base_and_adapter_do(family: str, tmp_path: Path) -> None:
    """chatglm3's base is in several files, and those of qwen and baichuan2-13b are no safetensors."""
    decoder = adapted(family, tmp_path / "base")
    save_adapter(decoder, tmp_path / "adapter")
    assert run(["lora", "merge", str(tmp_path / "base"), str(tmp_path / "adapter"), str(tmp_path / "out")]) == 0
    expected = whole(decoder, TOKENS)
    scale = max(float(expected.abs().max()), 1)
    torch.testing.assert_close(whole(load(tmp_path / "out", CPU), TOKENS), expected, rtol=0, atol=1e-5 * scale)


def test_tokenizer_and_everything_else_stay_byte_for_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_model(TINY, tmp_path)
    decoder = load(base, CPU)
    apply_lora(decoder, LoraConfig(rank=4, targets=("q_proj", "embed_tokens", "lm_head")), 0)
    randomise(lora_parameters(decoder).values())
    save_adapter(decoder, tmp_path / "adapter")
    out = tmp_path / "out"
    assert run(["lora", "merge", str(base), str(tmp_path / "adapter"), str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert {path.name for path in out.iterdir()} == {path.name for path in base.iterdir()}
    same = {path.name for path in base.iterdir() if path.read_bytes() == (out / path.name).read_bytes()}
    assert {path.name for path in base.iterdir()} - same == {"model.safetensors"}
    Tokenizer.from_folder(out)
    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.{n}.self_attn.q_proj.weight" for n in range(TINY.layers)} | {
        "model.embed_tokens.weight",
        "lm_head.weight",
    }


def test_bfloat16_stays_and_is_rounded_once(tmp_path: Path) -> None:
    from tandem.catalogue.generation import GenerationDefaults

    decoder = random_decoder(TINY, torch.bfloat16, 0)
    save(decoder, tmp_path / "base", GenerationDefaults(), {})
    apply_lora(decoder, LoraConfig(rank=4, alpha=6, targets=("v_proj",)), 0)
    randomise(lora_parameters(decoder).values())
    save_adapter(decoder, tmp_path / "adapter")
    assert run(["lora", "merge", str(tmp_path / "base"), str(tmp_path / "adapter"), str(tmp_path / "out")]) == 0
    factors = lora_parameters(decoder)
    delta = factors["layers.1.attention.v.lora_b"] @ factors["layers.1.attention.v.lora_a"] * 1.5
    merged = load_file(tmp_path / "out" / "model.safetensors")["model.layers.1.self_attn.v_proj.weight"]
    assert torch.equal(merged, (decoder.get_parameter("layers.1.attention.v.weight").float() + delta).bfloat16())


def test_what_cannot_be_merged_is_refused_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_adapter(adapted("llama", tmp_path / "base"), tmp_path / "adapter")
    out = tmp_path / "out"
    words = ["lora", "merge", str(tmp_path / "base"), str(tmp_path / "adapter"), str(out)]
    fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(fields | {"use_dora": True}))
    assert run(words) == 2
    assert "use_dora True is not supported" in capsys.readouterr().err
    assert not out.exists()
    out.mkdir()
    (out / "mine").touch()
    assert run(words) == 2
    assert "exists already" in capsys.readouterr().err
