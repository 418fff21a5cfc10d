"""Adapter folders against PEFT itself, on transformers' models: what either saves, the other computes alike.

In float64: how float32 rounds depends on the processor, and logits of these models by up to the tolerance.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapters import TOKENS, adapted, base_of, lora_parameters, randomise, save_adapter
from parity.measure import CPU, whole
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from tandem.model.folder import load
from tandem.training.adapters.peft_folder import load_adapter

peft = pytest.importorskip("peft", reason="peft is not installed; it comes with tandem[test]")
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT and transformers warn of each other

TOLERANCE = 1e-5
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]


def logits_of(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        return model.eval()(torch.tensor([TOKENS])).logits[0]  # type: ignore[no-any-return]


def theirs(folder: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, experts_implementation="eager")  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"target_modules": ["q_proj", "v_proj"]}),
        ("llama", {"target_modules": "all-linear", "use_rslora": True}),
        ("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
        ("llama", {"target_modules": ["down_proj"], "layers_to_transform": [1]}),
        ("qwen2", {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 9}}),
        ("glm", {"target_modules": "all-linear"}),
        ("mixtral", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
        ("mixtral", {"target_modules": [], "target_parameters": EXPERTS[:1]}),
        ("mixtral", {"target_modules": [], "target_parameters": [EXPERTS[1], "gate.weight"]}),
        ("mixtral", {"target_modules": "all-linear"}),
        ("deepseek_v3", {"target_modules": "all-linear"}),
        ("deepseek_v3", {"target_modules": ["q_a_proj"], "target_parameters": [*EXPERTS, "gate.weight"]}),
    ],
)
def test_what_peft_saves_computes_alike_here(family: str, settings: dict[str, object], tmp_path: Path) -> None:
    base_of(family, tmp_path / "base")
    config = peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **settings)
    model = peft.get_peft_model(theirs(tmp_path / "base"), config)
    randomise(parameter for name, parameter in model.named_parameters() if "lora_" in name)
    expected = logits_of(model)
    model.save_pretrained(tmp_path / "adapter")
    decoder = load(tmp_path / "base", CPU, torch.float64)
    before = whole(decoder, TOKENS)
    load_adapter(decoder, tmp_path / "adapter")
    assert (expected - before).abs().max() > 0.1
    torch.testing.assert_close(whole(decoder, TOKENS), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {}),
        ("llama", {"targets": ("q_proj", "attention.k"), "rslora": True}),
        ("llama", {"targets": ("q", "embedding", "head")}),
        ("llama", {"targets": ("layers.1.mlp.up_proj", "layers.2.attention.o")}),
        ("qwen2", {}),
        ("glm", {}),
        ("glm", {"targets": ("feed_forward.up",)}),
        ("mistral", {"dropout": 0.1}),
        ("mixtral", {}),
        ("mixtral", {"targets": ("q_proj", "w1")}),
        ("mixtral", {"targets": ("w2", "router")}),
        ("deepseek_v3", {"targets": ("all-linear", "embedding", "head")}),
        ("deepseek_v3", {"targets": ("q_a_proj", "kv_b_proj", "shared.gate")}),
        ("deepseek_v3", {"targets": ("layers.0.mlp.gate_proj", "experts.down", "layers.1.feed_forward.down")}),
    ],
)
def test_what_is_saved_here_computes_alike_in_peft(family: str, settings: dict[str, object], tmp_path: Path) -> None:
    decoder = adapted(family, tmp_path / "base", torch.float64, **settings)
    save_adapter(decoder, tmp_path / "adapter", base="a model")
    model = peft.PeftModel.from_pretrained(theirs(tmp_path / "base"), tmp_path / "adapter")
    torch.testing.assert_close(logits_of(model), whole(decoder, TOKENS), rtol=0, atol=TOLERANCE)
    again = load(tmp_path / "base", CPU, torch.float64)
    load_adapter(again, tmp_path / "adapter")
    ours, read = lora_parameters(decoder), lora_parameters(again)
    assert ours.keys() == read.keys()
    assert all(torch.equal(factor.float(), read[name].float()) for name, factor in ours.items()), "read as float32"
