"""Every family against a reference that has the same weights: transformers, or the formulas where it knows none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from parity.cases import CASES, GLM, Case
from parity.measure import CPU, measure, served, tokens_of, whole
from parity.references import FROM_FORMULAS, randomised, write
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tandem.catalogue.generation import GenerationDefaults
from tandem.model.folder import load, save
from tandem.model.norm import RMSNorm

TOLERANCE = 1e-4
NATIVE = [case for case in CASES if case.fields["model_type"] not in FROM_FORMULAS]
FORMULAS = [case for case in CASES if case.fields["model_type"] in FROM_FORMULAS]


def case_named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits_equal_the_references(case: Case, tmp_path: Path) -> None:
    found = measure(case, tmp_path / "model")
    # Logits that are nearly equal anyway would show no difference; a head of unit rows gives about 1.
    assert found.spread > (0.9 if case.fields["model_type"] == "baichuan" else 1)
    assert found.whole <= TOLERANCE
    assert found.served <= TOLERANCE


@pytest.mark.parametrize("case", NATIVE, ids=lambda case: case.name)
def test_transformers_reads_what_is_exported(case: Case, tmp_path: Path) -> None:
    write(case, tmp_path / "theirs")
    decoder = load(tmp_path / "theirs", CPU)
    save(decoder, tmp_path / "ours", GenerationDefaults(eos_token_ids=(1,), bos_token_id=0), {})
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    tokens = tokens_of(70, 97)
    with torch.inference_mode():
        expected = again(torch.tensor([tokens])).logits[0]
    torch.testing.assert_close(whole(decoder, tokens), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", FORMULAS, ids=lambda case: case.name)
def test_the_formulas_read_what_is_exported(case: Case, tmp_path: Path) -> None:
    write(case, tmp_path / "theirs")
    decoder = load(tmp_path / "theirs", CPU)
    save(decoder, tmp_path / "ours", GenerationDefaults(), {})
    fields = json.loads((tmp_path / "ours" / "config.json").read_text())
    tensors = {name: tensor.numpy() for name, tensor in load_file(tmp_path / "ours" / "model.safetensors").items()}
    tokens = tokens_of(70, 97)
    expected = FROM_FORMULAS[fields["model_type"]].logits(fields, tensors, tokens)
    assert np.abs(whole(decoder, tokens).numpy() - expected).max() <= TOLERANCE


def test_glm4_is_the_same_in_both_layouts(tmp_path: Path) -> None:
    """What transformers saved as `glm`, renamed to how THUDM published it, gives transformers' logits."""
    model = randomised(GLM)
    model.save_pretrained(tmp_path)
    decoder = load(tmp_path, CPU)
    original = case_named("glm4").fields | {
        "hidden_size": 48,
        "num_attention_heads": 6,
        "ffn_hidden_size": 80,
        "rope_ratio": 0.5,
        "layernorm_epsilon": 1.5625e-07,
    }
    as_published = tmp_path / "published"
    write(Case("glm4", original), as_published)
    other = load(as_published, CPU)
    other.load_state_dict(decoder.state_dict())
    save(other, tmp_path / "renamed", GenerationDefaults(), {})
    tokens = tokens_of(90, 97)
    with torch.inference_mode():
        expected = model(torch.tensor([tokens])).logits[0]
    torch.testing.assert_close(whole(load(tmp_path / "renamed", CPU), tokens), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["qwen", "llama, dynamic"])
def test_the_length_of_the_prompt_decides_the_rotation(name: str, tmp_path: Path) -> None:
    """A decode step that forgot its prompt's length would be far off."""
    reference = write(case_named(name), tmp_path)
    decoder, tokens = load(tmp_path, CPU), tokens_of(110, 97)
    expected = reference(tokens, 90)
    right, wrong = served(decoder, [tokens], [90])[0], served(decoder, [tokens], [30])[0]
    assert (right - expected).abs().max() <= TOLERANCE
    assert (wrong - expected).abs().max() > 0.1


@pytest.mark.parametrize(("name", "wide"), [("chatglm3", True), ("glm4", True), ("llama", False), ("glm", False)])
def test_weights_are_weighed_wide_where_the_family_does(name: str, wide: bool, tmp_path: Path) -> None:
    """In bfloat16 it makes a difference whether a norm's weight multiplies before or after the cast."""
    write(case_named(name), tmp_path / "model")
    decoder = load(tmp_path / "model", CPU, torch.bfloat16)
    norms = [module for module in decoder.modules() if isinstance(module, RMSNorm)]
    assert len(norms) == 2 * decoder.config.layers + 1
    seen: list[tuple[RMSNorm, Tensor, Tensor]] = []
    for norm in norms:
        norm.register_forward_hook(lambda norm, given, out: seen.append((norm, given[0], out)))
    whole(decoder, tokens_of(60, 97))
    assert len(seen) == len(norms)
    differing = 0
    for norm, x, out in seen:
        assert x.dtype is torch.bfloat16
        even = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()
        before_the_cast = (even.float() * norm.weight.float()).bfloat16()
        after_the_cast = even.bfloat16() * norm.weight
        expected = before_the_cast if wide else after_the_cast
        # Only a number on the edge between two of bfloat16's may fall to the other side.
        assert (out != expected).float().mean() < 1e-3
        differing += int((before_the_cast != after_the_cast).sum())
    assert differing > 1000


def test_the_bias_of_a_router_stays_in_float32(tmp_path: Path) -> None:
    write(case_named("deepseek_v3"), tmp_path)
    decoder = load(tmp_path, CPU, torch.bfloat16)
    dtypes = {name: parameter.dtype for name, parameter in decoder.named_parameters()}
    biases = [name for name in dtypes if name.endswith("router.bias")]
    assert len(biases) == 2
    assert all((dtypes[name] is torch.float32) == (name in biases) for name in dtypes)
