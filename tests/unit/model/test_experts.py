"""Routers against transformers' own, whose choice must be the same expert for expert."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DeepseekV3Config, MixtralConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

from tandem.catalogue.config import GroupedSigmoidRouter, MoE, SoftmaxRouter
from tandem.catalogue.models import MODELS
from tandem.catalogue.shrink import shrink
from tandem.model.experts import Mixture, Router
from tandem.model.random_weights import random_decoder

HIDDEN = 12


@st.composite
def grouped(draw: st.DrawFn) -> MoE:
    groups, per_group = draw(st.integers(1, 4)), draw(st.integers(2, 4))
    kept = draw(st.integers(1, groups))
    router = GroupedSigmoidRouter(
        groups=groups, chosen_groups=kept, scale=draw(st.floats(0.5, 3)), normalise=draw(st.booleans())
    )
    chosen = draw(st.integers(1, kept * per_group))
    return MoE(experts=groups * per_group, top_k=chosen, size=4, router=router)


def by_expert(weights: Tensor, chosen: Tensor, experts: int) -> Tensor:
    """Weight of every expert for every token, [N, X]: the order of a choice does not matter."""
    return torch.zeros(len(weights), experts).scatter(1, chosen, weights.float())


def filled(router: Router, seed: int) -> Router:
    generator = torch.Generator().manual_seed(seed)
    for parameter in router.parameters():
        parameter.detach().normal_(0, 0.5, generator=generator)
    return router


@given(mixture=grouped(), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_groups_and_experts_are_those_of_transformers(mixture: MoE, seed: int) -> None:
    ours = filled(Router(HIDDEN, mixture), seed)
    assert isinstance(mixture.router, GroupedSigmoidRouter)
    theirs = DeepseekV3TopkRouter(
        DeepseekV3Config(
            hidden_size=HIDDEN,
            n_routed_experts=mixture.experts,
            num_experts_per_tok=mixture.top_k,
            n_group=mixture.router.groups,
            topk_group=mixture.router.chosen_groups,
            routed_scaling_factor=mixture.router.scale,
            norm_topk_prob=mixture.router.normalise,
        )
    )
    theirs.weight.data, theirs.e_score_correction_bias = ours.weight.data, ours.bias.data
    x = torch.randn(20, HIDDEN, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        _, weights, chosen = theirs(x)
        expected = by_expert(weights, chosen, mixture.experts)
        found = by_expert(*ours(x), mixture.experts)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@given(experts=st.integers(1, 8), data=st.data(), seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_the_best_experts_are_those_of_transformers(experts: int, data: st.DataObject, seed: int) -> None:
    chosen = data.draw(st.integers(1, experts))
    ours = filled(Router(HIDDEN, MoE(experts=experts, top_k=chosen, size=4, router=SoftmaxRouter())), seed)
    theirs = MixtralTopKRouter(MixtralConfig(hidden_size=HIDDEN, num_local_experts=experts, num_experts_per_tok=chosen))
    theirs.weight.data = ours.weight.data
    x = torch.randn(20, HIDDEN, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        _, weights, indices = theirs(x)
        found = by_expert(*ours(x), experts)
    torch.testing.assert_close(found, by_expert(weights, indices, experts), atol=1e-6, rtol=1e-5)


def test_a_bias_chooses_but_does_not_weigh() -> None:
    router = GroupedSigmoidRouter(groups=1, chosen_groups=1, scale=1.0, normalise=False)
    ours = filled(Router(HIDDEN, MoE(experts=4, top_k=1, size=4, router=router)), 0)
    ours.bias.data = torch.tensor([0.0, 0.0, 5.0, 0.0])
    x = torch.randn(10, HIDDEN)
    with torch.inference_mode():
        weights, chosen = ours(x)
        scores = (x @ ours.weight.T).sigmoid()
    assert (chosen == 2).all()
    torch.testing.assert_close(weights[:, 0], scores[:, 2])


def test_experts_compute_what_each_alone_would() -> None:
    mixture = MoE(experts=3, top_k=2, size=5, router=SoftmaxRouter(), shared_size=4)
    layer = Mixture(HIDDEN, mixture)
    for parameter in layer.parameters():
        parameter.detach().normal_(0, 0.5)
    assert layer.shared is not None
    x = torch.randn(2, 7, HIDDEN)
    with torch.inference_mode():
        weights, chosen = layer.router(x.flatten(0, 1))
        rows = zip(x.flatten(0, 1), weights, chosen, strict=True)
        expected = torch.stack([_one(layer, *row) for row in rows])
        torch.testing.assert_close(layer(x), expected.view_as(x) + layer.shared(x), atol=1e-5, rtol=1e-4)


def test_gradients_are_those_of_each_expert_alone() -> None:
    layer = Mixture(HIDDEN, MoE(experts=5, top_k=2, size=5, router=SoftmaxRouter())).double()
    for parameter in layer.parameters():
        parameter.detach().normal_(0, 0.5)
    x = torch.randn(9, HIDDEN, dtype=torch.float64)
    weights, chosen = (tensor.detach() for tensor in layer.router(x))
    experts = layer.experts
    matrices = (experts.gate, experts.up, experts.down)
    found = torch.autograd.grad(experts(x, weights, chosen).double().pow(2).sum(), matrices)
    alone = torch.stack([_one(layer, *row) for row in zip(x, weights, chosen, strict=True)])
    expected = torch.autograd.grad(alone.pow(2).sum(), matrices)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_experts_are_summed_wide() -> None:
    """In bf16, eight parts added in bf16 lose more than the parts themselves."""
    layer = Mixture(64, MoE(experts=8, top_k=8, size=32, router=SoftmaxRouter())).bfloat16()
    for parameter in layer.parameters():
        parameter.detach().normal_(0, 0.3)
    x = torch.randn(256, 64).bfloat16()
    with torch.inference_mode():
        weights, chosen = layer.router(x)
        found = layer.experts(x, weights, chosen)
        narrow = torch.zeros_like(x)
        for weight, expert in zip(weights.T, chosen.T, strict=True):
            parts = [_one(layer, *row) for row in zip(x, weight[:, None], expert[:, None], strict=True)]
            narrow += torch.stack(parts).bfloat16()
        exact = layer.double().experts(x.double(), weights.double(), chosen)
    assert (found - exact).abs().mean() < 0.9 * (narrow - exact).abs().mean()


def _one(layer: Mixture, row: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
    parts = []
    for weight, expert in zip(weights, chosen.tolist(), strict=True):
        gate, up, down = (matrix[expert] for matrix in (layer.experts.gate, layer.experts.up, layer.experts.down))
        parts.append(weight * (down @ (torch.nn.functional.silu(gate @ row) * (up @ row))))
    return torch.stack(parts).sum(0)


def test_training_leaves_the_bias_alone() -> None:
    decoder = random_decoder(shrink(MODELS["deepseek-v3"].config), torch.float32, 0).unfreeze()
    frozen = [name for name, parameter in decoder.named_parameters() if not parameter.requires_grad]
    assert len(frozen) == 2
    assert all(name.endswith("feed_forward.router.bias") for name in frozen)
