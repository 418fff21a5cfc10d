"""The references themselves, against what transformers has: the same model by another name, once tensors are renamed.

What transformers has nowhere (NTK by the prompt, logn, ALiBi in a Llama, NormHead) is put into its models from outside.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import (
    GlmConfig,
    GlmForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from reference import baichuan, chatglm, qwen
from reference.random_folder import FORMS, Form, random_tensors, write_folder
from reference.transformer import Array, Config

Tensors = Mapping[str, NDArray[Any]]

TOKENS = np.random.default_rng(7).integers(0, 97, 80).tolist()
VARIANTS: dict[str, tuple[ModuleType, Callable[[], Config]]] = {
    "qwen": (qwen, qwen.tiny),
    "chatglm3": (chatglm, chatglm.tiny_chatglm3),
    "glm4": (chatglm, chatglm.tiny_glm4),
    "baichuan-13b": (baichuan, baichuan.tiny_13b),
    "baichuan-7b": (baichuan, baichuan.tiny_7b),
}


def assert_close(ours: Array, theirs: Array, tolerance: float = 1e-4) -> None:
    """Equal within what float32 leaves of logits that are big enough to show a difference."""
    assert ours.dtype == np.float64
    assert 0.5 < ours.std() < 10
    assert np.abs(ours - theirs).max() <= tolerance


def filled(model: PreTrainedModel, tensors: Tensors) -> PreTrainedModel:
    """The model with exactly these tensors, computing attention as matrix products."""
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(t)) for name, t in tensors.items()})
    model.set_attn_implementation("eager")
    return model.eval()


def outputs(model: PreTrainedModel, **inputs: torch.Tensor) -> Array:
    with torch.inference_mode():
        return model(torch.tensor([TOKENS]), **inputs).logits[0].double().numpy()


def thirds(fused: NDArray[Any], name: str, end: str) -> Tensors:
    return dict(zip((f"{name}.{part}_proj.{end}" for part in "qkv"), np.split(fused, 3), strict=True))


# --- Qwen v1 as a Qwen2 -------------------------------------------------------------------------------------------


def qwen2(config: Config, tensors: Tensors, theta: float) -> PreTrainedModel:
    renamed: dict[str, NDArray[Any]] = {
        "model.embed_tokens.weight": tensors["transformer.wte.weight"],
        "model.norm.weight": tensors["transformer.ln_f.weight"],
        "lm_head.weight": tensors["lm_head.weight"],
    }
    for n in range(config["num_hidden_layers"]):
        old, new = f"transformer.h.{n}", f"model.layers.{n}"
        renamed |= thirds(tensors[f"{old}.attn.c_attn.weight"], f"{new}.self_attn", "weight")
        renamed |= thirds(tensors[f"{old}.attn.c_attn.bias"], f"{new}.self_attn", "bias")
        renamed |= {
            f"{new}.input_layernorm.weight": tensors[f"{old}.ln_1.weight"],
            f"{new}.self_attn.o_proj.weight": tensors[f"{old}.attn.c_proj.weight"],
            f"{new}.post_attention_layernorm.weight": tensors[f"{old}.ln_2.weight"],
            f"{new}.mlp.up_proj.weight": tensors[f"{old}.mlp.w1.weight"],
            f"{new}.mlp.gate_proj.weight": tensors[f"{old}.mlp.w2.weight"],
            f"{new}.mlp.down_proj.weight": tensors[f"{old}.mlp.c_proj.weight"],
        }
    shape = Qwen2Config(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"] // 2,
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=config["num_attention_heads"],
        num_key_value_heads=config["num_attention_heads"],
        rms_norm_eps=config["layer_norm_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        tie_word_embeddings=False,
    )
    return filled(Qwen2ForCausalLM(shape), renamed)


def scale_queries(model: PreTrainedModel, factors: list[float]) -> None:
    """Multiply the queries of each position; a factor for all channels of a head passes through the rotation."""
    for layer in model.model.layers:
        layer.self_attn.q_proj.register_forward_hook(lambda _, __, y: y * torch.tensor(factors)[:, None])


@pytest.mark.parametrize("logn", [False, True])
@pytest.mark.parametrize(("prompt_length", "alpha"), [(32, 1), (33, 3), (64, 3), (80, 7), (None, 7)])
def test_qwen_is_a_qwen2_with_a_base_and_scaled_queries(prompt_length: int | None, alpha: int, logn: bool) -> None:
    config = qwen.tiny() | {"use_logn_attn": logn}
    tensors = random_tensors(qwen.shapes(config), 1)
    model = qwen2(config, tensors, 10000 * alpha ** (16 / 14))
    if logn:
        scale_queries(model, [1.0] * 32 + [math.log(p, 32) for p in range(33, len(TOKENS) + 1)])
    assert_close(qwen.logits(config, tensors, TOKENS, prompt_length), outputs(model))


def test_qwen_without_its_flags_is_a_qwen2() -> None:
    config = qwen.tiny() | {"use_dynamic_ntk": False, "use_logn_attn": False, "rotary_emb_base": 1000000}
    tensors = random_tensors(qwen.shapes(config), 2)
    assert_close(qwen.logits(config, tensors, TOKENS), outputs(qwen2(config, tensors, 1e6)))


def test_qwen_keeps_the_alpha_of_its_prompt() -> None:
    """Token by token after the prompt gives what one pass gives that is told of the prompt."""
    config = qwen.tiny()
    tensors = random_tensors(qwen.shapes(config), 3)
    whole = qwen.logits(config, tensors, TOKENS, prompt_length=40)
    for length in (41, 65, 80):
        step = qwen.logits(config, tensors, TOKENS[:length], prompt_length=40)
        np.testing.assert_allclose(step[-1], whole[length - 1], atol=1e-9)
    assert np.abs(qwen.logits(config, tensors, TOKENS)[-1] - whole[-1]).max() > 0.1


# --- ChatGLM3 and GLM-4 as a Glm ----------------------------------------------------------------------------------


def glm(config: Config, tensors: Tensors) -> PreTrainedModel:
    heads, groups, width = config["num_attention_heads"], config["multi_query_group_num"], config["kv_channels"]
    encoder = "transformer.encoder"
    renamed: dict[str, NDArray[Any]] = {
        "model.embed_tokens.weight": tensors["transformer.embedding.word_embeddings.weight"],
        "model.norm.weight": tensors[f"{encoder}.final_layernorm.weight"],
        "lm_head.weight": tensors["transformer.output_layer.weight"],
    }
    for n in range(config["num_layers"]):
        old, new = f"{encoder}.layers.{n}", f"model.layers.{n}"
        for end in ("weight", "bias"):
            fused = tensors[f"{old}.self_attention.query_key_value.{end}"]
            parts = np.split(fused, [heads * width, (heads + groups) * width])
            renamed |= {f"{new}.self_attn.{name}_proj.{end}": part for name, part in zip("qkv", parts, strict=True)}
        renamed |= {
            f"{new}.input_layernorm.weight": tensors[f"{old}.input_layernorm.weight"],
            f"{new}.self_attn.o_proj.weight": tensors[f"{old}.self_attention.dense.weight"],
            f"{new}.post_attention_layernorm.weight": tensors[f"{old}.post_attention_layernorm.weight"],
            f"{new}.mlp.gate_up_proj.weight": tensors[f"{old}.mlp.dense_h_to_4h.weight"],
            f"{new}.mlp.down_proj.weight": tensors[f"{old}.mlp.dense_4h_to_h.weight"],
        }
    theta = 10000.0 * config.get("rope_ratio", 1)
    shape = GlmConfig(
        vocab_size=config["padded_vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["ffn_hidden_size"],
        num_hidden_layers=config["num_layers"],
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=width,
        rms_norm_eps=config["layernorm_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 0.5},
        attention_bias=True,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=2,
    )
    return filled(GlmForCausalLM(shape), renamed)


@pytest.mark.parametrize("config", [chatglm.tiny_chatglm3(), chatglm.tiny_glm4()], ids=["chatglm3", "glm4"])
def test_chatglm_is_a_glm(config: Config) -> None:
    tensors = random_tensors(chatglm.shapes(config), 4)
    assert_close(chatglm.logits(config, tensors, TOKENS), outputs(glm(config, tensors)))


def test_chatglm_without_its_last_norm_is_a_glm_without() -> None:
    config = chatglm.tiny_glm4()
    tensors = random_tensors(chatglm.shapes(config), 5)
    model = glm(config, tensors)
    model.model.norm = torch.nn.Identity()
    ours = chatglm.logits(config | {"post_layer_norm": False}, tensors, TOKENS)
    np.testing.assert_allclose(ours, outputs(model), atol=1e-3)


def test_chatglm_residuals_after_the_norms_are_those_of_a_glm_so_wired() -> None:
    """Where the norm's output is the residual, adding (norm(x) - x) to what a layer returns is the same."""
    config = chatglm.tiny_glm4()
    tensors = random_tensors(chatglm.shapes(config), 6)
    model = glm(config, tensors)
    for layer in model.model.layers:
        wire_residual(layer.input_layernorm, layer.self_attn)
        wire_residual(layer.post_attention_layernorm, layer.mlp)
    ours = chatglm.logits(config | {"apply_residual_connection_post_layernorm": True}, tensors, TOKENS)
    assert_close(ours, outputs(model), 5e-4)


def wire_residual(norm: torch.nn.Module, block: torch.nn.Module) -> None:
    changes: list[torch.Tensor] = []
    norm.register_forward_hook(lambda _, x, y: changes.append(y - x[0]))

    def add(_: torch.nn.Module, __: object, y: Any) -> Any:
        change = changes.pop()
        return (y[0] + change, *y[1:]) if isinstance(y, tuple) else y + change

    block.register_forward_hook(add)


# --- Baichuan 2 as a Llama ----------------------------------------------------------------------------------------


def llama(config: Config, tensors: Tensors) -> PreTrainedModel:
    renamed: dict[str, NDArray[Any]] = {}
    for name, tensor in tensors.items():
        if name.endswith("W_pack.weight"):
            renamed |= thirds(tensor, name.removesuffix(".W_pack.weight"), "weight")
        elif name == "lm_head.weight":
            renamed[name] = torch.nn.functional.normalize(torch.from_numpy(tensor), dim=1).numpy()
        else:
            renamed[name] = tensor
    shape = LlamaConfig(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=config["num_attention_heads"],
        rms_norm_eps=config["rms_norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
    )
    return filled(LlamaForCausalLM(shape), renamed)


def test_baichuan_7b_is_a_llama() -> None:
    config = baichuan.tiny_7b()
    tensors = random_tensors(baichuan.shapes(config), 8)
    assert_close(baichuan.logits(config, tensors, TOKENS), outputs(llama(config, tensors)))


@pytest.mark.parametrize("heads", [6, 8, 12])
def test_baichuan_13b_is_a_llama_that_stands_still_and_leans(heads: int) -> None:
    """All at position 0 nothing turns; MPT's ALiBi, the same up to a constant per query, comes in by the mask."""
    config = baichuan.tiny_13b() | {"num_attention_heads": heads}
    tensors = random_tensors(baichuan.shapes(config), 9)
    length = len(TOKENS)
    mask = build_mpt_alibi_tensor(heads, length) + torch.full((length, length), -1e30).triu(1)
    theirs = outputs(
        llama(config, tensors),
        position_ids=torch.zeros(1, length, dtype=torch.long),
        attention_mask=mask[None],
    )
    assert_close(baichuan.logits(config, tensors, TOKENS), theirs)


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 40, 52, 64])
def test_alibi_is_that_of_bloom_and_mpt(heads: int) -> None:
    """Theirs has one row, that of the last query; ours has it too, and each diagonal is constant."""
    length = 9
    ours = baichuan.alibi(heads, length)
    bloom = build_alibi_tensor(torch.ones(1, length), heads, torch.float32)[:, 0].numpy()
    mpt = build_mpt_alibi_tensor(heads, length)[:, 0].numpy()
    np.testing.assert_allclose(ours[:, -1], bloom - bloom[:, -1:], rtol=1e-6)
    np.testing.assert_allclose(ours[:, -1], mpt, rtol=1e-6)
    np.testing.assert_array_equal(ours[:, 1:, 1:], ours[:, :-1, :-1])


def test_alibi_slopes_of_forty_heads() -> None:
    """Those of 32 heads, then every other of 64."""
    slopes = baichuan.alibi_slopes(40)
    np.testing.assert_allclose(slopes[:32], [2 ** (-k / 4) for k in range(1, 33)])
    np.testing.assert_allclose(slopes[32:], [2 ** (-k / 8) for k in (1, 3, 5, 7, 9, 11, 13, 15)])


# --- All families -------------------------------------------------------------------------------------------------


CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("qwen", {"use_dynamic_ntk": False}),
    ("qwen", {"use_logn_attn": False}),
    ("qwen", {"seq_length": 16}),
    ("qwen", {"rotary_pct": 0.5}),
    ("qwen", {"rotary_emb_base": 20000}),
    ("qwen", {"no_bias": False}),
    ("qwen", {"num_attention_heads": 8, "kv_channels": 8}),
    ("qwen", {"layer_norm_epsilon": 1e-2}),
    ("chatglm3", {"rope_ratio": 2}),
    ("chatglm3", {"add_qkv_bias": False}),
    ("chatglm3", {"layernorm_epsilon": 1e-2}),
    ("glm4", {"rope_ratio": 1}),
    ("glm4", {"add_bias_linear": True}),
    ("glm4", {"rmsnorm": False}),
    ("glm4", {"post_layer_norm": False}),
    ("glm4", {"apply_residual_connection_post_layernorm": True}),
    ("baichuan-13b", {"max_position_embeddings": 64}),
    ("baichuan-13b", {"num_attention_heads": 4}),
    ("baichuan-13b", {"rms_norm_eps": 1e-2}),
    ("baichuan-7b", {"num_attention_heads": 8}),
]


@pytest.mark.parametrize(("variant", "change"), CHANGES)
def test_every_field_that_is_read_moves_the_logits(variant: str, change: dict[str, Any]) -> None:
    module, tiny = VARIANTS[variant]
    before = tiny()
    shapes = module.shapes(before) | module.shapes(before | change)
    tensors = random_tensors(shapes, 10)
    moved = module.logits(before | change, tensors, TOKENS) - module.logits(before, tensors, TOKENS)
    assert np.abs(moved).max() > 1e-2


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_tensor_but_the_stored_frequencies_is_read(variant: str) -> None:
    module, tiny = VARIANTS[variant]
    config, shapes = tiny(), module.shapes(tiny())
    tensors = random_tensors(shapes, 11)
    whole = module.logits(config, tensors, TOKENS)
    for name in shapes:
        nudged = module.logits(config, tensors | {name: tensors[name] + nudge(shapes[name])}, TOKENS)
        assert (np.abs(nudged - whole).max() > 1e-3) == (not name.endswith("inv_freq")), name


def nudge(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A change that no norm, softmax or scaling takes back."""
    return np.random.default_rng(12).normal(0.0, 0.1, shape).astype(np.float32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_token_sees_nothing_after_it(variant: str) -> None:
    module, tiny = VARIANTS[variant]
    tensors = random_tensors(module.shapes(tiny()), 13)
    whole = module.logits(tiny(), tensors, TOKENS, prompt_length=50)
    part = module.logits(tiny(), tensors, TOKENS[:50], prompt_length=50)
    np.testing.assert_allclose(part, whole[:50], atol=1e-9)


# --- Folders ------------------------------------------------------------------------------------------------------


def read(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the files that the indices name, or of the one file."""
    files = {path for path in folder.iterdir() if path.suffix in {".safetensors", ".bin"}}
    tensors: dict[str, torch.Tensor] = {}
    for path in files:
        content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
        assert not tensors.keys() & content.keys()
        tensors |= content
    for index in folder.glob("*.index.json"):
        content = json.loads(index.read_text())
        assert {folder / file for file in content["weight_map"].values()} == files
        assert content["weight_map"].keys() == tensors.keys()
        assert content["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    return tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_folder_holds_what_is_returned(form: Form, dtype: torch.dtype, tmp_path: Path) -> None:
    config = chatglm.tiny_glm4()
    returned = write_folder(tmp_path / "model", config, chatglm.shapes(config), 14, dtype, form)
    stored = read(tmp_path / "model")
    assert list(returned) == list(chatglm.shapes(config))
    assert stored.keys() == returned.keys()
    for name, tensor in stored.items():
        assert tensor.dtype == dtype
        np.testing.assert_array_equal(tensor.float().numpy(), returned[name])
    written = json.loads((tmp_path / "model" / "config.json").read_text())
    assert written == config | {"torch_dtype": str(dtype).removeprefix("torch.")}


def test_folders_are_named_as_the_originals(tmp_path: Path) -> None:
    config = qwen.tiny()
    names = {}
    for form in FORMS:
        write_folder(tmp_path / form, config, qwen.shapes(config), 15, form=form, shards=2)
        names[form] = sorted(path.name for path in (tmp_path / form).iterdir())
    assert names == {
        "safetensors": ["config.json", "model.safetensors"],
        "sharded": [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
        ],
        "bin": ["config.json", "pytorch_model.bin"],
        "sharded-bin": [
            "config.json",
            "pytorch_model-00001-of-00002.bin",
            "pytorch_model-00002-of-00002.bin",
            "pytorch_model.bin.index.json",
        ],
    }


def test_seed_decides_the_tensors() -> None:
    shapes = qwen.shapes(qwen.tiny())
    first, same, other = random_tensors(shapes, 0), random_tensors(shapes, 0), random_tensors(shapes, 1)
    assert all((first[name] == same[name]).all() and not (first[name] == other[name]).any() for name in shapes)
    assert all(abs(t.mean() - 1) < 0.2 for name, t in first.items() if "ln_" in name)
    assert all(abs(t.mean()) < 0.1 for name, t in first.items() if "ln_" not in name)
