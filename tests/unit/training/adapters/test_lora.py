"""Adapters on the decoder: what they change, what they leave, and that merging them changes nothing more."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from adapters import FAMILIES, TOKENS, adapted, base_of, every_target, lora_parameters
from parity.measure import CPU, whole
from tiny import TINY

from tandem.catalogue.generation import GenerationDefaults
from tandem.catalogue.models import MODELS
from tandem.catalogue.shrink import shrink
from tandem.errors import ModelFolderError, RecipeError
from tandem.model.decoder import Decoder
from tandem.model.folder import load, save
from tandem.model.random_weights import random_decoder
from tandem.training.adapters.lora import apply_lora, initial_factors, merge, strengths
from tandem.training.adapters.targets import rank_to_spare, resolved, targets_for
from tandem.training.compute.parallelize import trained
from tandem.training.settings.config import LoraConfig


@pytest.mark.parametrize("family", [*FAMILIES, "qwen2, tied"])
def test_at_first_nothing_changes_and_merging_changes_nothing_more(family: str, tmp_path: Path) -> None:
    base = base_of(family, tmp_path / "base")
    before = whole(base, TOKENS)
    names = [name for name, _ in base.named_parameters()]
    targets, matrices = every_target(base.config), {name for name, one in base.named_parameters() if one.dim() > 1}
    apply_lora(base, LoraConfig(rank=4, targets=targets), 0)
    assert torch.equal(whole(base, TOKENS), before)
    config = base.config
    refused = [config.tied_embeddings * "embedding.weight", config.normalised_head * "head.weight"]
    assert strengths(base).keys() == matrices - set(refused)
    decoder = adapted(family, tmp_path / "again", targets=targets)
    unmerged = whole(decoder, TOKENS)
    assert (unmerged - before).abs().max() > 0.1
    merge(decoder)
    assert [name for name, _ in decoder.named_parameters()] == names
    scale = float(unmerged.abs().max())
    torch.testing.assert_close(whole(decoder, TOKENS), unmerged, rtol=0, atol=1e-5 * max(scale, 1))
    save(decoder, tmp_path / "merged", GenerationDefaults(), {})
    assert torch.equal(whole(load(tmp_path / "merged", CPU), TOKENS), whole(decoder, TOKENS))


def test_in_bfloat16_merging_rounds_the_sum_once() -> None:
    decoder = random_decoder(TINY, torch.bfloat16, 0)
    apply_lora(decoder, LoraConfig(rank=4, targets=("q_proj",)), 0)
    factors = lora_parameters(decoder)
    assert {factor.dtype for factor in factors.values()} == {torch.float32}
    torch.nn.init.normal_(factors["layers.0.attention.q.lora_b"], std=0.05, generator=torch.Generator().manual_seed(0))
    a, b = factors["layers.0.attention.q.lora_a"], factors["layers.0.attention.q.lora_b"]
    expected = (decoder.get_parameter("layers.0.attention.q.weight").float() + b @ a * 8).bfloat16()
    merge(decoder)
    assert torch.equal(decoder.get_parameter("layers.0.attention.q.weight"), expected)


def test_factors_are_a_function_of_seed_and_name_also_without_memory() -> None:
    config = LoraConfig(rank=4, targets=("q_proj", "embed_tokens"))
    drawn = random_decoder(TINY, torch.float32, 0)
    apply_lora(drawn, config, 7)
    with torch.device("meta"):
        empty = Decoder(TINY)
    apply_lora(empty, config, 7)
    assert all(parameter.is_meta for parameter in empty.parameters())
    values = dict(initial_factors(empty, 7))
    assert values.keys() == lora_parameters(drawn).keys()
    assert all(torch.equal(values[name], factor) for name, factor in lora_parameters(drawn).items())
    first, second = (values[f"layers.{layer}.attention.q.lora_a"] for layer in (0, 1))
    assert not torch.equal(first, second)
    assert first.abs().max() <= 1 / 8  # PEFT's kaiming_uniform_(a=sqrt(5)): within 1/sqrt(in)
    assert first.std() == pytest.approx(1 / 8 / 3**0.5, rel=0.1)
    assert not values["embedding.lora_a"].any()
    others = dict(initial_factors(empty, 8))
    assert not torch.equal(others["layers.0.attention.q.lora_a"], first)


def test_only_factors_need_gradients() -> None:
    decoder = random_decoder(TINY, torch.float32, 0).unfreeze()
    apply_lora(decoder, LoraConfig(rank=4, targets=("attention.q", "head")), 0)
    assert trained(decoder).keys() == {f"model.{name}" for name in lora_parameters(decoder)}
    assert len(trained(decoder)) == 2 * (TINY.layers + 1)


def test_a_model_folder_cannot_hold_adapters(tmp_path: Path) -> None:
    decoder = adapted("llama", tmp_path / "base")
    with pytest.raises(ModelFolderError, match="merge the adapters first"):
        save(decoder, tmp_path / "out", GenerationDefaults(), {})


@pytest.mark.parametrize(
    ("family", "targets", "expected"),
    [
        ("llama", ("q_proj", "mlp.up_proj"), {"attention.q", "feed_forward.up"}),
        ("llama", ("attention.v",), {"attention.v"}),
        ("glm", ("gate_up_proj",), {"feed_forward.gate", "feed_forward.up"}),
        ("chatglm3", ("query_key_value",), {"attention.q", "attention.k", "attention.v"}),
        ("baichuan2-7b", ("W_pack", "o_proj"), {"attention.q", "attention.k", "attention.v", "attention.o"}),
        ("qwen", ("c_attn", "w2"), {"attention.q", "attention.k", "attention.v", "feed_forward.gate"}),
        ("mixtral", ("gate",), {"feed_forward.router"}),
        ("mixtral", ("w1", "w2"), {"feed_forward.experts.gate", "feed_forward.experts.down"}),
        ("mixtral", ("experts.gate_up_proj",), {"feed_forward.experts.gate", "feed_forward.experts.up"}),
    ],
)
def test_targets_go_by_our_names_and_by_the_checkpoints(
    family: str, targets: tuple[str, ...], expected: set[str], tmp_path: Path
) -> None:
    config = base_of(family, tmp_path / "base").config
    found = resolved(config, LoraConfig(rank=2, targets=targets))
    assert {name.removesuffix(".weight").split(".", 2)[2] for name in found} == expected
    assert len(found) == len(expected) * config.layers


def test_all_linear_is_everything_but_the_tables(tmp_path: Path) -> None:
    config = base_of("deepseek_v3", tmp_path / "base").config
    shapes = base_of("deepseek_v3", tmp_path / "again").named_parameters()
    matrices = {name for name, parameter in shapes if parameter.dim() > 1} - {"embedding.weight", "head.weight"}
    assert set(resolved(config, LoraConfig())) == matrices


def test_targets_smaller_than_the_rank_are_named_once_for_all_layers() -> None:
    config = MODELS["mixtral-8x7b"].config
    says = rank_to_spare(config, LoraConfig(rank=1025))
    assert says is not None
    assert "(attention.k 1024, attention.v 1024, feed_forward.router 8)" in says
    assert rank_to_spare(config, LoraConfig(rank=1024, targets=("q_proj", "v_proj"))) is None


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("llama", {"targets": ("q_prj",)}, "q_prj is no matrix of this model; it has .*q_proj"),
        ("llama, tied, one kv head", {"targets": ("embed_tokens",)}, "the embedding is this model's head too"),
        ("qwen2, tied", {"targets": ("lm_head",)}, "lm_head is no matrix of this model"),
        ("baichuan2-7b", {"targets": ("lm_head",)}, "scaled to length one"),
        ("llama", {"rank": 49}, r"lora\.rank 49: is above 48, the rank of layers\.0\.attention\.q\.weight, and no"),
        ("mixtral", {"dropout": 0.1}, "feed_forward.router cannot have any"),
        ("llama", {"targets": ("embed_tokens",), "dropout": 0.1}, "embedding cannot have any"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    family: str, fields: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        adapted(family, tmp_path / "base", **fields)


def test_dropout_on_a_mixture_is_refused_by_its_shape_alone() -> None:
    config = MODELS["mixtral-8x7b"].config
    for targets in ("all-linear", ("w1",), ("gate",), ("lm_head",)):
        with pytest.raises(RecipeError, match="cannot have any"):
            resolved(config, LoraConfig(rank=8, dropout=0.1, targets=targets))
    assert resolved(config, LoraConfig(dropout=0.1, targets=("q_proj",)))


@pytest.mark.parametrize("family", sorted({model.config.family for model in MODELS.values()}))
def test_targets_for_some_matrices_name_these_and_no_others(family: str) -> None:
    config = shrink(next(model.config for model in MODELS.values() if model.config.family == family))
    every, draw = resolved(config, LoraConfig(rank=1)), random.Random(family)
    kind = draw.choice(every).partition(".")[2].partition(".")[2]
    for wanted in (
        every,
        [name for name in every if name.startswith("layers.1.")],
        [name for name in every if name.endswith(f".{kind}")],
        draw.sample(every, 3),
        every[:1],
    ):
        found = resolved(config, LoraConfig(rank=1, targets=tuple(targets_for(config, wanted))))
        assert found == [name for name in every if name in wanted]
