"""Random configurations of every family survive `config.json` and back, and random weights a folder and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from parity.cases import DEEPSEEK, GLM, LLAMA, MISTRAL, MIXTRAL, QWEN2
from parity.mutations import fields_read
from safetensors import safe_open
from transformers import AutoConfig

from tandem.catalogue.config import GQA, MLA, GroupedSigmoidRouter, ModelConfig, MoE, SoftmaxRouter, SwiGLU, Window
from tandem.catalogue.generation import GenerationDefaults
from tandem.catalogue.position import (
    Alibi,
    DynamicNTK,
    LinearScaling,
    Llama3Scaling,
    QwenNTK,
    Rope,
    Scaling,
    Yarn,
)
from tandem.catalogue.shapes import parameter_shapes
from tandem.catalogue.shrink import SmallShape, shrink
from tandem.errors import ModelFolderError
from tandem.model.decoder import Decoder
from tandem.model.families import FAMILIES
from tandem.model.folder import load, save

CPU = torch.device("cpu")
NATIVE = ("llama", "mistral", "mixtral", "qwen2", "glm", "deepseek_v3")
small, length, factor = st.integers(1, 3), st.integers(1, 10**6), st.floats(1.0, 64.0)
epsilon, theta = st.floats(1e-8, 1e-2), st.floats(2.0, 1e7)
coefficient = st.just(0.0) | st.floats(1e-4, 1.0)


def scalings(max_position: int, dims: int) -> st.SearchStrategy[Scaling | None]:
    kinds: list[st.SearchStrategy[Scaling | None]] = [
        st.none(),
        st.builds(LinearScaling, factor=factor),
        st.builds(
            Llama3Scaling, factor=factor, low=st.floats(0.5, 2), high=st.floats(2.5, 8), trained=st.integers(1, 10**5)
        ),
        st.builds(
            Yarn,
            factor=factor,
            trained=st.integers(1, 10**5),
            beta_fast=st.floats(8, 40),
            beta_slow=st.floats(0.1, 4),
            mscale=st.none() | factor,
            mscale_all_dim=st.none() | factor,
            attention_factor=st.none() | st.floats(0.5, 2),
            truncate=st.booleans(),
        ),
    ]
    if dims > 2:
        kinds.append(st.builds(DynamicNTK, factor=factor, trained=st.just(max_position)))
    return st.one_of(kinds)


def ropes(max_position: int, dims: int) -> st.SearchStrategy[Rope]:
    return st.builds(Rope, theta=theta, dims=st.just(dims), scaling=scalings(max_position, dims))


def llama_like(draw: DrawFn, family: str) -> ModelConfig:
    kv_heads, group, head_dim, max_position = draw(small), draw(small), 2 * draw(st.integers(1, 4)), draw(length)
    return ModelConfig(
        family=family,
        vocab_size=draw(st.integers(2, 40)),
        hidden_size=kv_heads * group * draw(st.integers(1, 4)),
        layers=draw(small),
        attention=GQA(heads=kv_heads * group, kv_heads=kv_heads, head_dim=head_dim),
        position=draw(ropes(max_position, head_dim)),
        feed_forward=SwiGLU(size=draw(st.integers(1, 20))),
        norm_eps=draw(epsilon),
        tied_embeddings=draw(st.booleans()),
        max_position=max_position,
    )


def with_attention(config: ModelConfig, **changes: Any) -> ModelConfig:
    assert isinstance(config.attention, GQA)
    return replace(config, attention=replace(config.attention, **changes))


@st.composite
def llama(draw: DrawFn) -> ModelConfig:
    return llama_like(draw, "llama")


@st.composite
def mistral(draw: DrawFn) -> ModelConfig:
    config = llama_like(draw, "mistral")
    everywhere = st.builds(Window, size=length, layers=st.just(tuple(range(config.layers))))
    return with_attention(config, window=draw(st.none() | everywhere))


@st.composite
def mixtral(draw: DrawFn) -> ModelConfig:
    config, experts = draw(mistral()), draw(st.integers(1, 4))
    mixture = MoE(
        experts=experts,
        top_k=draw(st.integers(1, experts)),
        size=draw(st.integers(1, 9)),
        router=SoftmaxRouter(),
        balance=draw(coefficient),
    )
    return replace(config, family="mixtral", feed_forward=mixture)


@st.composite
def qwen2(draw: DrawFn) -> ModelConfig:
    config = llama_like(draw, "qwen2")
    layers = draw(st.sets(st.integers(0, config.layers - 1)))
    window = Window(size=draw(length), layers=tuple(sorted(layers))) if layers else None
    return with_attention(config, qkv_bias=True, window=window)


@st.composite
def glm(draw: DrawFn) -> ModelConfig:
    config = with_attention(llama_like(draw, "glm"), qkv_bias=draw(st.booleans()))
    assert isinstance(config.attention, GQA)
    dims = 2 * draw(st.integers(1, config.attention.head_dim // 2))
    rope = draw(ropes(config.max_position, dims))
    return replace(config, position=replace(rope, interleaved=True))


@st.composite
def qwen(draw: DrawFn) -> ModelConfig:
    heads, head_dim, trained = draw(small), 2 * draw(st.integers(2, 4)), draw(st.integers(2, 10**5))
    scaling = draw(st.sampled_from([None, QwenNTK(trained=trained)]))
    return ModelConfig(
        family="qwen",
        vocab_size=draw(st.integers(2, 40)),
        hidden_size=heads * head_dim,
        layers=draw(small),
        attention=GQA(
            heads=heads,
            kv_heads=heads,
            head_dim=head_dim,
            qkv_bias=True,
            logn=draw(st.sampled_from([None, trained])),
        ),
        position=Rope(theta=draw(theta), dims=head_dim, scaling=scaling),
        feed_forward=SwiGLU(size=draw(st.integers(1, 20))),
        norm_eps=draw(epsilon),
        tied_embeddings=draw(st.booleans()),
        max_position=draw(length),
    )


@st.composite
def chatglm(draw: DrawFn) -> ModelConfig:
    groups, shared, head_dim = draw(small), draw(small), 4 * draw(st.integers(1, 4))
    return ModelConfig(
        family="chatglm",
        vocab_size=draw(st.integers(2, 40)),
        hidden_size=draw(st.integers(1, 24)),
        layers=draw(small),
        attention=GQA(heads=groups * shared, kv_heads=groups, head_dim=head_dim, qkv_bias=draw(st.booleans())),
        position=Rope(theta=10000.0 * draw(st.integers(1, 10000)), dims=head_dim // 2, interleaved=True),
        feed_forward=SwiGLU(size=draw(st.integers(1, 20))),
        norm_eps=draw(epsilon),
        norm_weight_wide=True,
        max_position=draw(length),
    )


@st.composite
def baichuan(draw: DrawFn) -> ModelConfig:
    heads, head_dim = draw(st.integers(1, 6)), 2 * draw(st.integers(1, 4))
    return ModelConfig(
        family="baichuan",
        vocab_size=draw(st.integers(2, 40)),
        hidden_size=heads * head_dim,
        layers=draw(small),
        attention=GQA(heads=heads, kv_heads=heads, head_dim=head_dim),
        position=draw(st.sampled_from([Alibi(), Rope(theta=10000.0, dims=head_dim)])),
        feed_forward=SwiGLU(size=draw(st.integers(1, 20))),
        norm_eps=draw(epsilon),
        normalised_head=True,
        max_position=draw(length),
    )


@st.composite
def deepseek_v3(draw: DrawFn) -> ModelConfig:
    rope_dim, max_position, layers = 2 * draw(st.integers(1, 4)), draw(length), draw(small)
    return ModelConfig(
        family="deepseek_v3",
        vocab_size=draw(st.integers(2, 40)),
        hidden_size=draw(st.integers(1, 24)),
        layers=layers,
        attention=MLA(
            heads=draw(small),
            q_rank=draw(st.none() | st.integers(1, 8)),
            kv_rank=draw(st.integers(1, 8)),
            nope_dim=draw(st.integers(1, 6)),
            rope_dim=rope_dim,
            value_dim=draw(st.integers(1, 6)),
        ),
        position=replace(draw(ropes(max_position, rope_dim)), interleaved=draw(st.booleans())),
        feed_forward=draw(grouped_mixtures(layers)),
        norm_eps=draw(epsilon),
        tied_embeddings=draw(st.booleans()),
        max_position=max_position,
    )


@st.composite
def grouped_mixtures(draw: DrawFn, layers: int) -> MoE:
    groups, per_group, size = draw(small), draw(st.integers(2, 3)), draw(st.integers(1, 8))
    kept, dense = draw(st.integers(1, groups)), draw(st.integers(0, layers))
    return MoE(
        experts=groups * per_group,
        top_k=draw(st.integers(1, kept * per_group)),
        size=size,
        router=GroupedSigmoidRouter(
            groups=groups, chosen_groups=kept, scale=draw(st.floats(0.5, 4)), normalise=draw(st.booleans())
        ),
        shared_size=size * draw(st.integers(0, 2)),
        dense_layers=dense,
        dense_size=draw(st.integers(1, 20)) if dense else 0,
        balance=draw(coefficient),
    )


STRATEGIES: dict[str, Callable[[], st.SearchStrategy[ModelConfig]]] = {
    "llama": llama,
    "mistral": mistral,
    "mixtral": mixtral,
    "qwen": qwen,
    "qwen2": qwen2,
    "chatglm": chatglm,
    "glm": glm,
    "baichuan": baichuan,
    "deepseek_v3": deepseek_v3,
}
REQUIRED = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}
"""What every `config.json` has, whatever its architecture's defaults."""
REQUIRED_OF_DEEPSEEK = REQUIRED | {
    *("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "moe_intermediate_size"),
    *("n_routed_experts", "num_experts_per_tok", "n_group", "topk_group", "routed_scaling_factor"),
}
several = settings(max_examples=40, deadline=None)
few = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_every_family_has_a_strategy() -> None:
    assert STRATEGIES.keys() == FAMILIES.keys()


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_configuration_survives(name: str) -> None:
    family = FAMILIES[name]

    @given(config=STRATEGIES[name]())
    @several
    def survives(config: ModelConfig) -> None:
        assert family.read_config(family.write_config(config), "config.json") == config

    survives()


@pytest.mark.parametrize("name", sorted(STRATEGIES.keys() - {"glm"}))  # of small heads no part is whole pairs
def test_a_small_configuration_survives(name: str) -> None:
    """What is made small for a test can be written, too, whatever scaling it has."""
    family = FAMILIES[name]

    @given(config=STRATEGIES[name](), longest=st.integers(65, 4096))
    @several
    def survives(config: ModelConfig, longest: int) -> None:
        small = shrink(config, SmallShape(max_position=longest))
        assert family.read_config(family.write_config(small), "config.json") == small

    survives()


@pytest.mark.parametrize("name", NATIVE)
def test_transformers_understands_it_alike(name: str) -> None:
    """Read by transformers and spelled out with all of its own names, it is still the same configuration."""
    family = FAMILIES[name]

    @given(config=STRATEGIES[name]())
    @several
    def understood(config: ModelConfig) -> None:
        theirs = AutoConfig.for_model(family.model_type, **family.write_config(config)).to_dict()
        assert family.read_config(theirs, "config.json") == config

    understood()


@pytest.mark.parametrize(
    "fields", [LLAMA, MISTRAL, MIXTRAL, QWEN2, GLM, DEEPSEEK], ids=lambda fields: fields["model_type"]
)
def test_what_is_left_out_means_what_it_means_to_transformers(fields: dict[str, Any]) -> None:
    """Without a field the family's default counts, which is transformers', or the field is asked for by name."""
    family = FAMILIES[fields["model_type"]]
    # A number that the defaults of the other sizes go with.
    fields = fields | {"num_attention_heads": 128, "num_key_value_heads": 128, "hidden_size": 256}
    required = REQUIRED_OF_DEEPSEEK if family.name == "deepseek_v3" else REQUIRED
    for field in fields_read(fields):
        rest = {name: value for name, value in fields.items() if name != field}
        if field in required:
            with pytest.raises(ModelFolderError, match=f"{field} is missing"):
                family.read_config(rest, "config.json")
        else:
            theirs = AutoConfig.for_model(**rest).to_dict()
            assert family.read_config(rest, "config.json") == family.read_config(theirs, "config.json"), field


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        (LLAMA, "num_key_value_heads"),
        (LLAMA, "head_dim"),
        (MISTRAL, "head_dim"),
        (MISTRAL, "sliding_window"),
        (MIXTRAL, "sliding_window"),
        (QWEN2 | {"use_sliding_window": True}, "sliding_window"),
        (QWEN2, "num_key_value_heads"),
        (DEEPSEEK, "q_lora_rank"),
        (DEEPSEEK, "num_key_value_heads"),
    ],
)
def test_null_means_what_it_means_to_transformers(fields: dict[str, Any], field: str) -> None:
    family, fields = FAMILIES[fields["model_type"]], fields | {field: None}
    theirs = AutoConfig.for_model(**fields).to_dict()
    assert family.read_config(fields, "config.json") == family.read_config(theirs, "config.json")


@pytest.mark.parametrize("name", STRATEGIES)
def test_weights_survive_a_folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    family = FAMILIES[name]

    @given(config=STRATEGIES[name](), seed=st.integers(0, 2**31))
    @few
    def survive(config: ModelConfig, seed: int) -> None:
        folder = tmp_path_factory.mktemp(name) / "model"
        decoder = Decoder(config)
        generator = torch.Generator().manual_seed(seed)
        for parameter in decoder.parameters():
            parameter.detach().normal_(generator=generator)
        save(decoder, folder, GenerationDefaults(), {})
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            assert set(file.keys()) == family.tensors(config).keys()
        again = load(folder, CPU)
        assert again.config == config
        pairs = zip(decoder.named_parameters(), again.named_parameters(), strict=True)
        assert all(one == other and torch.equal(a, b) for (one, a), (other, b) in pairs)

    survive()


@pytest.mark.parametrize("name", STRATEGIES)
def test_tensors_hold_every_parameter_once(name: str) -> None:
    @given(config=STRATEGIES[name]())
    @several
    def hold(config: ModelConfig) -> None:
        held = [rows for tensor in FAMILIES[name].tensors(config).values() for rows in tensor]
        assert len(set(held)) == len(held)
        experts = {name: shape[0] for name, shape in parameter_shapes(config).items() if ".experts." in name}
        assert {rows.name for rows in held} == parameter_shapes(config).keys()
        assert all(sum(rows.name == name for rows in held) == count for name, count in experts.items())

    hold()
