"""What a family cannot compute is refused in one clear line that names the field."""

from __future__ import annotations

import re
from typing import Any

import pytest
from parity.cases import DEEPSEEK, GLM, LLAMA, LLAMA3, MISTRAL, MIXTRAL, QWEN2, scaled, yarn
from reference import baichuan, chatglm, qwen

from tandem.errors import ModelFolderError
from tandem.model.families import FAMILIES, family_of, understand

FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
BAICHUAN_13B = baichuan.tiny_13b() | {"num_hidden_layers": 40, "hidden_size": 5120, "num_attention_heads": 40}
BAICHUAN_7B = baichuan.tiny_7b() | {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32}
REFUSALS: tuple[tuple[dict[str, Any], str], ...] = (
    (
        LLAMA | {"architectures": ["MambaForCausalLM"]},
        "MambaForCausalLM is not supported; known: LlamaForCausalLM, Mis",
    ),
    (LLAMA | {"architectures": "LlamaForCausalLM"}, "architectures is 'LlamaForCausalLM'; expected a list"),
    ({"model_type": "mamba"}, "architecture mamba is not supported"),
    ({}, "architecture none is not supported"),
    (LLAMA | scaled("spiral"), "rope_scaling: rope type 'spiral' is not supported; supported: default, linear"),
    (LLAMA | scaled("longrope", factor=2.0), "rope type 'longrope'"),
    (LLAMA | scaled("linear"), "rope_scaling: factor is missing; expected a number"),
    (LLAMA | scaled("dynamic"), "rope_scaling: factor is missing; expected a number"),
    (LLAMA | scaled("llama3", factor=2.0), "rope_scaling: low_freq_factor is missing"),
    (LLAMA | scaled("linear", factor=-1), "rope_scaling: factor is -1"),
    (LLAMA | {"rope_scaling": "yarn"}, "rope_scaling is 'yarn'; expected an object or null"),
    (
        LLAMA | scaled("linear", factor=2.0) | {"rope_parameters": {"rope_type": "default"}},
        "rope_parameters and rope_scaling contradict each other",
    ),
    (
        QWEN2 | {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}},
        "rope_parameters: one set for each kind of layer is not supported",
    ),
    (LLAMA | {"partial_rotary_factor": 0.5}, r"partial_rotary_factor = 0.5 is not supported; supported: 1.0"),
    (GLM | {"partial_rotary_factor": 1.5}, "partial_rotary_factor = 1.5 is not supported"),
    (LLAMA | {"vocab_size": None}, "vocab_size is missing; expected a whole number from 1 to 2147483648"),
    (LLAMA | {"hidden_size": "48"}, "hidden_size is '48'; expected a whole number"),
    (LLAMA | {"rms_norm_eps": 0}, "rms_norm_eps is 0; expected a number above 0"),
    (LLAMA | {"tie_word_embeddings": 1}, "tie_word_embeddings is 1; expected true or false"),
    (LLAMA | {"mlp_bias": True}, "mlp_bias = True is not supported; supported: False"),
    (LLAMA | {"quantization_config": FP8}, "quantization_config = .+; give unquantised weights"),
    (LLAMA | {"quantization_config": {"ignored_layers": ["layer"] * 500}}, "give unquantised weights"),
    (LLAMA | {"sliding_window": 4096}, "sliding_window = 4096 is not supported; leave it out"),
    (LLAMA | {"hidden_act": "x" * 2000}, "hidden_act = 'x+ is not supported; supported: 'silu'"),
    (LLAMA | {"architectures": ["x" * 2000]}, "architecture .* is not supported"),
    (LLAMA | {"architectures": {"x" * 2000: 1}}, "architectures is .*; expected a list"),
    (LLAMA | scaled("x" * 2000), "rope type 'x+ is not supported"),
    (LLAMA | {"num_key_value_heads": 5}, "6 heads are not divisible by 5 kv heads; correct the file or copy it again"),
    (LLAMA | {"num_hidden_layers": 10**400}, "num_hidden_layers is 10+; expected a whole number"),
    (LLAMA | {"rope_theta": 1.0}, "rope theta 1.0 must be above 1; correct"),
    (LLAMA | {"rope_theta": 0.5} | yarn(), "rope theta 0.5 must be above 1"),
    (LLAMA | scaled("linear", factor=0.5), "rope factor 0.5 must be from 1"),
    (LLAMA | scaled("dynamic", factor=1e8), "rope factor 100000000.0 must be from 1 to 1e.06"),
    (LLAMA | yarn(beta_slow=1e-320), "yarn betas 1e-320 and 32.0 must ascend from 1e-06"),
    (LLAMA | yarn(beta_slow=40.0), "yarn betas 40.0 and 32.0 must ascend"),
    (LLAMA | LLAMA3 | {"rope_scaling": LLAMA3["rope_scaling"] | {"high_freq_factor": 1.0}}, "1.0 and 1.0 must ascend"),
    (QWEN2 | {"use_sliding_window": True, "layer_types": ["full_attention"]}, "layer_types is wrong; name"),
    (QWEN2 | {"use_sliding_window": True, "layer_types": [["a"]] * 3}, "layer_types is wrong; name"),
    (MISTRAL | {"sliding_window": 0}, "sliding_window is 0"),
    (MISTRAL | {"layer_types": ["full_attention"] * 3}, "layer_types = "),
    (MIXTRAL | {"num_experts_per_tok": 6}, "6 of 5 experts cannot be chosen"),
    (DEEPSEEK | {"quantization_config": FP8 | {"quant_method": "gptq"}}, "quantization_config: quant_method = 'gptq'"),
    (DEEPSEEK | {"quantization_config": FP8 | {"weight_block_size": [64, 64]}}, "weight_block_size = "),
    (DEEPSEEK | {"quantization_config": FP8 | {"activation_scheme": "static"}}, "activation_scheme = 'static'"),
    (DEEPSEEK | {"scoring_func": "softmax"}, "scoring_func = 'softmax' is not supported; supported: 'sigmoid'"),
    (DEEPSEEK | {"seq_aux": "no"}, "seq_aux is 'no'; expected true or false"),
    (DEEPSEEK | {"topk_method": "greedy"}, "topk_method = 'greedy'"),
    (DEEPSEEK | {"moe_layer_freq": 2}, "moe_layer_freq = 2"),
    (DEEPSEEK | {"num_nextn_predict_layers": "one"}, "num_nextn_predict_layers is 'one'; expected a whole number"),
    (DEEPSEEK | {"num_key_value_heads": 2}, "num_key_value_heads = 2 is not supported; supported: 6"),
    (qwen.tiny() | {"no_bias": False}, "no_bias = False is not supported; supported: True"),
    (qwen.tiny() | {"rotary_pct": 0.25}, "rotary_pct = 0.25"),
    (qwen.tiny() | {"scale_attn_weights": False}, "scale_attn_weights = False"),
    (qwen.tiny() | {"intermediate_size": 161}, "intermediate_size 161 is odd"),
    (qwen.tiny() | {"quantization_config": {"quant_method": "gptq"}}, "quantization_config = "),
    (chatglm.tiny_glm4() | {"multi_query_attention": False}, "multi_query_attention = False"),
    (chatglm.tiny_glm4() | {"add_bias_linear": True}, "add_bias_linear = True"),
    (chatglm.tiny_glm4() | {"post_layer_norm": False}, "post_layer_norm = False"),
    (chatglm.tiny_glm4() | {"rmsnorm": False}, "rmsnorm = False"),
    (chatglm.tiny_glm4() | {"pre_seq_len": 128}, "pre_seq_len = 128"),
    (chatglm.tiny_glm4() | {"quantization_bit": 8}, "quantization_bit = 8"),
    (
        chatglm.tiny_glm4() | {"_name_or_path": "THUDM/chatglm2-6b-32k"},
        "_name_or_path is ChatGLM2's",
    ),
    (baichuan.tiny_13b() | {"vocab_size": 64000}, "vocab_size 64000 is Baichuan 1's, which is not supported"),
    (BAICHUAN_13B | {"max_position_embeddings": 4096}, "this is 13B, which has ALiBi; remove the field"),
    (BAICHUAN_7B | {"max_position_embeddings": None}, "this is 7B, which has rotary positions; add the field"),
    (baichuan.tiny_13b() | {"hidden_size": 50}, "50 hidden numbers cannot be cut into 6 heads"),
    (baichuan.tiny_7b() | {"tie_word_embeddings": True}, "tie_word_embeddings = True is not supported"),
)


@pytest.mark.parametrize(("fields", "message"), REFUSALS, ids=[message[:40] for _, message in REFUSALS])
def test_a_refusal_is_one_line_that_names_the_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFolderError, match=message) as caught:
        understand(fields, "m/config.json")
    assert re.match(r"m/config\.json: .+; \w+", str(caught.value))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500  # with the name of every known architecture


def test_an_unknown_architecture_is_told_all_known_ones() -> None:
    with pytest.raises(ModelFolderError) as caught:
        family_of({"architectures": ["MambaForCausalLM"]}, "config.json")
    assert all(family.architectures[0] in str(caught.value) for family in FAMILIES.values())


@pytest.mark.parametrize(
    "fields", [LLAMA, chatglm.tiny_chatglm3(), qwen.tiny()], ids=lambda fields: fields["model_type"]
)
def test_a_config_without_architectures_goes_by_its_type(fields: dict[str, Any]) -> None:
    without = {name: value for name, value in fields.items() if name != "architectures"}
    assert family_of(without, "config.json") is family_of(fields, "config.json")


def test_what_is_only_foreign_code_is_ignored() -> None:
    fields = LLAMA | {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}, "pretraining_tp": 2}
    assert FAMILIES["llama"].read_config(fields, "m") == FAMILIES["llama"].read_config(LLAMA, "m")


def test_deepseeks_own_quantisation_is_accepted() -> None:
    read = FAMILIES["deepseek_v3"].read_config
    scaled_blocks = DEEPSEEK | {"quantization_config": FP8 | {"scale_fmt": "ue8m0"}}
    assert read(scaled_blocks, "m") == read(DEEPSEEK, "m")


def test_only_announced_drafting_layers_are_ignored() -> None:
    announced = DEEPSEEK | {"num_nextn_predict_layers": 1}
    family, config = understand(announced, "m")
    assert config.layers == 4
    assert family.ignored("model.layers.4.eh_proj.weight", config, announced)
    for layer in (3, 5, 40):
        assert not family.ignored(f"model.layers.{layer}.eh_proj.weight", config, announced)
    assert not family.ignored("model.layers.4.eh_proj.weight", config, DEEPSEEK)
